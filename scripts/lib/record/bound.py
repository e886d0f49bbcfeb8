"""What an artifact's bytes are bound to, given its inputs' bytes, and the kinds of machines.

Nothing here is part of a recipe. docs/bytes.md tells how each was measured.
"""

import os
from enum import Enum
from pathlib import Path


class Bound(Enum):
    """Where the same recipe and the same inputs give the same bytes again.

    ANYWHERE: on every machine. MACHINE: on machines of the same kind (`kind_of_machine`), because
    sums of floats depend on the processor's instructions, or on whether there is a GPU. NEVER: two
    builds differ on one machine too.
    """

    ANYWHERE = "anywhere"
    MACHINE = "this kind of machine"
    NEVER = "not reproducible"


# {rule: what its artifacts are bound to}: what stages declare. lib/stages/registry.py fills it in,
# because stages are above artifacts. A rule that is not there counts as bound to the machine.
OF_RULE: dict[str, Bound] = {}

# The levels of x86-64 (its psABI), by the flags of /proc/cpuinfo that each adds.
LEVELS = {
    "x86-64-v2": "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3",
    "x86-64-v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "x86-64-v4": "avx512bw avx512cd avx512dq avx512f avx512vl",
}
# Beyond levels: instructions for which llama.cpp, oneDNN and MKL have code of its own.
BEYOND = {
    *("avx_vnni", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512vbmi"),
    *("amx_bf16", "amx_int8", "amx_tile", "asimddp", "bf16", "i8mm", "sve", "sve2"),
}


def kind_of_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The kind of this machine: {cpu, gpu}; `gpu` only if CUDA_VISIBLE_DEVICES names some.

    cpu: the level, the vendor (MKL has code of its own for Intel's) and instructions beyond the
    level, such as "x86-64-v4 AuthenticAMD avx512_bf16 avx512_vnni". gpu: names and compute
    capabilities as nvidia-smi tells them. No host and no path is in it.
    """
    kind = {"cpu": _processor(cpuinfo)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return kind | {"gpu": _gpus(visible)} if visible else kind


def words(kind: dict[str, str]) -> str:
    """A kind of machine in words."""
    return " with ".join(filter(None, (kind.get("cpu"), kind.get("gpu"))))


def _processor(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    flags = set((told.get("flags") or told.get("Features") or "").split())
    name = os.uname().machine
    if name == "x86_64":
        name = "x86-64"
        for level, needed in LEVELS.items():
            if not flags.issuperset(needed.split()):
                break
            name = level
    vendor = told.get("vendor_id") or told.get("CPU implementer") or ""
    return " ".join(filter(None, (name, vendor, *sorted(flags & BEYOND))))


def _gpus(visible: str) -> str:
    import subprocess  # takes 10 ms, and each step imports this module

    asked = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader", "-i", visible]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return "; ".join(sorted(set(said.strip().splitlines()))) or "a GPU"

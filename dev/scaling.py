"""What a large run asks of a cluster: jobs, time, GPU hours and disk of many models of one size.

    python dev/scaling.py --models 100 --parameters 70e9

Times and memory are those that jobs ask for (lib/stages/resources.py): limits, which most jobs stay well under. Printed as
Markdown; docs/scaling.md has the answer for 100 models of 70B.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from lib.formats.base_logits import base_logits_bytes
from lib.formats.quants import QUANT_TYPES
from lib.stages import resources

TYPES = [
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_M",
    "Q4_K_S",
    "Q4_0",
    "Q4_1",
    "IQ4_NL",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "IQ3_M",
    "IQ3_XXS",
    "Q2_K",
    "IQ2_M",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
]
EXL2_BITS = (3.0, 4.0, 5.0, 6.0)
CONTEXT = 512
THREADS = 8  # CPUs of a job whose model is large (rules/common.smk)
TB = 1e12


def jobs(parameters: float, parents: int) -> list[tuple[str, int, float]]:
    """(step, jobs, bytes that each reads) of one model: merged, 20 quants with shards, EXL2, all evaluated."""
    full = 2 * parameters
    sizes = [QUANT_TYPES[name].bpw / 8 * parameters for name in TYPES]
    mean = sum(sizes) / len(sizes)
    return [
        ("merge", 1, parents * full),
        ("convert", 1, full),
        ("imatrix", 1, full),
        ("quantize", len(TYPES), full),
        ("split", len(TYPES), mean),
        ("base_logits", 1, full),
        ("evaluate", len(TYPES) + 1, mean),
        ("exl2_measure", 1, full),
        ("exl2_quantize", len(EXL2_BITS), full),
        ("exl2_evaluate", len(EXL2_BITS), sum(EXL2_BITS) / len(EXL2_BITS) / 8 * parameters),
    ]


def table(parameters: float, parents: int, models: int) -> list[str]:
    """A line a step: how many jobs, and what one of them asks for."""
    lines = [
        "| step | jobs | memory, GB | time limit, h | GPUs | GPU hours | core hours |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    total = [0, 0.0, 0.0]
    for step, count, size in jobs(parameters, parents):
        gpus = resources.gpus(step, round(size))
        hours = resources.runtime_min(step, round(size), gpu=gpus > 0) / 60
        memory = resources.mem_mb(step, round(size)) / 1000
        asked = (count * models, count * models * hours * gpus, count * models * hours * THREADS)
        total = [before + now for before, now in zip(total, asked, strict=True)]
        lines.append(
            f"| {step} | {asked[0]:,} | {memory:.0f} | {hours:.1f} | {gpus or ''} "
            f"| {f'{asked[1]:,.0f}' if gpus else ''} | {asked[2]:,.0f} |"
        )
    return [*lines, f"| all | {total[0]:,} | | | | {total[1]:,.0f} | {total[2]:,.0f} |"]


def disk(parameters: float, models: int, chunks: int, vocabulary: int) -> list[str]:
    """Lines on the disk that a model and a run take, kept and while it is built."""
    full = 2 * parameters
    quants = sum(QUANT_TYPES[name].bpw / 8 * parameters for name in TYPES)
    exl2 = sum(EXL2_BITS) / 8 * parameters
    logits = base_logits_bytes(chunks, CONTEXT, vocabulary)
    rows = [
        ("merge, safetensors (reclaimable)", full),
        ("unquantized GGUF (reclaimable)", full),
        ("base logits (always reclaimed)", logits),
        (f"{len(TYPES)} quants", quants),
        ("their shards (left out without split_max_size)", quants),
        (f"EXL2 at {len(EXL2_BITS)} sizes", exl2),
    ]
    lines = ["| on disk | a model, GB | all, TB |", "| --- | --: | --: |"]
    lines += [f"| {name} | {size / 1e9:,.0f} | {models * size / TB:,.1f} |" for name, size in rows]
    kept, passing = 2 * quants + exl2, 2 * full + logits
    return [
        *lines,
        f"| kept in the end, with `reclaim: [safetensors, bf16]` | {kept / 1e9:,.0f} | {models * kept / TB:,.1f} |",
        f"| besides, while it is built | {passing / 1e9:,.0f} | |",
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--models", type=int, default=100)
    options.add_argument("--parameters", type=float, default=70e9, help="of one model")
    options.add_argument("--parents", type=int, default=3, help="models in a merge")
    options.add_argument("--chunks", type=int, default=600, help="of the evaluation, at 512 tokens")
    options.add_argument("--vocabulary", type=int, default=128_256)
    given = options.parse_args()
    print("\n".join(table(given.parameters, given.parents, given.models)))
    print()
    print("\n".join(disk(given.parameters, given.models, given.chunks, given.vocabulary)))


if __name__ == "__main__":
    main()

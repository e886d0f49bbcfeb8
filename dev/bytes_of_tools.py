"""Compile llama.cpp's tools in several ways, and compare the quants that they make.

    python dev/bytes_of_tools.py DIRECTORY GGUF IMATRIX [--only NAME …]

GGUF, IMATRIX: an unquantized model and its importance matrix; a tiny one will do. Each way of
building makes each type from these, and an importance matrix of its own from a text (--text). What
is printed tells which came out as those of the first way. It takes some minutes a compiler; what is
compiled stays in DIRECTORY. docs/bytes.md has what it printed.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import install_llama_cpp as install
from lib.errors import program
from lib.formats.quants import QUANT_TYPES
from lib.record.tools import bundled_version

TOOLS = ("llama-quantize", "llama-imatrix", "llama-perplexity")
PLAIN = [f"GGML_{name}=OFF" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")]
AVX = [flag.replace("OFF", "ON") for flag in PLAIN]
CLANG = ["CMAKE_C_COMPILER=clang", "CMAKE_CXX_COMPILER=clang++"]
ARM = [
    *("CMAKE_C_COMPILER=aarch64-linux-gnu-gcc", "CMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"),
    *("CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64", "GGML_OPENMP=OFF"),
    "GGML_CPU_ARM_ARCH=armv8-a",
]
FUSED = "cmake_language(DEFER CALL target_compile_options ggml-base PRIVATE {})"
EMULATED = {"arm": ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]}


class Way(NamedTuple):
    """A way to build. compiler: the directory of its objects. flags, included: for CMake."""

    compiler: str
    flags: list[str]
    included: str = install.NOT_FUSED


FUSING = FUSED.format("-mfma -ffp-contract=fast")
WAYS = {
    "gcc, native": Way("gcc", ["GGML_NATIVE=ON"]),
    "gcc, AVX2": Way("gcc", ["GGML_NATIVE=OFF", *AVX]),
    "gcc, no AVX": Way("gcc", ["GGML_NATIVE=OFF", *PLAIN]),
    "gcc, AVX2, ggml-base with -mfma": Way(
        "gcc", ["GGML_NATIVE=OFF", *AVX], f"{FUSING}\n{install.NOT_FUSED}"
    ),
    "gcc, AVX2, ggml-base fused": Way("gcc", ["GGML_NATIVE=OFF", *AVX], FUSING),
    "clang, native": Way("clang", ["GGML_NATIVE=ON", *CLANG]),
    "clang, AVX2": Way("clang", ["GGML_NATIVE=OFF", *AVX, *CLANG]),
    "clang, no AVX": Way("clang", ["GGML_NATIVE=OFF", *PLAIN, *CLANG]),
    "gcc, Arm": Way("arm", ["GGML_NATIVE=OFF", *ARM]),
    "gcc, Arm, as it comes": Way("arm", ["GGML_NATIVE=OFF", *ARM], ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("imatrix", type=Path)
    parser.add_argument("--text", type=Path, help="a text for an importance matrix of each way")
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    asked.directory.mkdir(parents=True, exist_ok=True)
    here = asked.directory.resolve()
    for name, path in (("model.gguf", asked.gguf), ("imatrix.dat", asked.imatrix)):
        shutil.copy(path, here / name)
    if asked.text:
        shutil.copy(asked.text, here / "text.txt")
    first: dict[str, str] = {}
    for name in asked.only:
        found = made(here, name, asked.jobs)
        first = first or found
        for key, digest in found.items():
            same = "as the first" if digest == first.get(key) else "DIFFERENT"
            print(f"{name:34} {key:10} {digest[:16]}  {same}", flush=True)


def made(here: Path, name: str, jobs: int) -> dict[str, str]:
    """{type or `imatrix`: sha256 (hex)} of what the tools of one way make.

    Raises UserError if they cannot be compiled.
    """
    way = WAYS[name]
    flags = [*install.build_flags(False, False, bundled_version()), *way.flags]
    install.cmake(here / way.compiler, flags, TOOLS, jobs, way.included)
    tools = here / "bin" / name
    shutil.copytree(here / way.compiler / "bin", tools, dirs_exist_ok=True)
    run, found = EMULATED.get(way.compiler, []), {}
    for kind in QUANT_TYPES:
        command = [*run, tools / "llama-quantize", "--imatrix", "imatrix.dat"]
        found[kind] = digest(here, [*command, "model.gguf", "out.gguf", kind, "2"], "out.gguf")
    if (here / "text.txt").exists():
        command = [*run, tools / "llama-imatrix", "-m", "model.gguf", "-f", "text.txt"]
        command += ["-o", "out.dat", "--output-format", "dat", "--chunks", "4", "-c", "128"]
        found["imatrix"] = digest(here, [*command, "-t", "2"], "out.dat")
    return found


def digest(here: Path, command: list, output: str) -> str:
    """sha256 (hex) of the file that a command makes; why not, where it fails."""
    (here / output).unlink(missing_ok=True)
    done = subprocess.run([*map(str, command)], cwd=here, capture_output=True, text=True)
    if done.returncode:
        return f"failed: {(done.stderr.splitlines() or [''])[-1]}"
    return hashlib.sha256((here / output).read_bytes()).hexdigest()


if __name__ == "__main__":
    program(main)

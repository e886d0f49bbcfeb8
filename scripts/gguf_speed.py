"""Measure how fast llama.cpp runs a GGUF file, by its llama-bench.

Prints JSON: {backend, prompt: [tokens a second, for each repetition], text: [the same]}.

llama-bench is that of the user's own llama.cpp, or is compiled once a machine, from the source and
with the flags of the tools that make files. It is none of these tools, so it is in no recipe.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from install_llama_cpp import cmake, objects, way_of
from lib.errors import UserError, program
from lib.flags.speed import speed_parser
from lib.record.shared_cache import held, made_once, place
from lib.record.tools import bundled_version, own_tool

TOOL = "llama-bench"
# What is compiled together, because most of it is the same.
TOOLS = (TOOL, "llama-mtmd-cli", "llama-server")
ALL_LAYERS = 99


def extra_tool(name: str, llama_cpp: dict, jobs: int) -> Path:
    """One of TOOLS, compiled now if it is not there.

    llama_cpp: {path, cuda, portable, version}. jobs: files to compile at once. Raises UserError if
    the user's own llama.cpp lacks it, or it cannot be compiled.
    """
    if own := llama_cpp["path"]:
        if tool := own_tool(own, name):
            return tool
        raise UserError(f"llama_cpp.path: {own} has no {name}; build this target there too")
    version = llama_cpp["version"]
    way, facts, flags = way_of(llama_cpp, version)
    flags = [flag.replace("LLAMA_BUILD_SERVER=OFF", "LLAMA_BUILD_SERVER=ON") for flag in flags]
    compile_them = partial(compile_tools, place(way, facts), flags, jobs)
    return made_once(f"llama-extra-{version}", facts, compile_them) / name


def tool_to_try(name: str, llama_cpp: dict, jobs: int) -> Path | None:
    """As `extra_tool`, of the bundled version; None if the user's own llama.cpp lacks it."""
    if own := llama_cpp["path"]:
        return own_tool(own, name)
    return extra_tool(name, llama_cpp | {"version": bundled_version()}, jobs)


def compile_tools(beside: Path, flags: list[str], jobs: int, home: Path) -> None:
    """Compile TOOLS into the directory `home`. Raises UserError if that fails.

    beside: the directory of the tools that make files; it may have most of that compiled.
    """
    home.mkdir()
    names = f"{', '.join(TOOLS[:-1])} and {TOOLS[-1]}"
    print(f"Compiling {names}, once a machine: some minutes. {home}/log", file=sys.stderr)
    with held(beside), objects(beside) as work:
        cmake(work, flags, TOOLS, jobs, log=home / "log")
        for tool in TOOLS:
            (work / "bin" / tool).rename(home / tool)
        shutil.rmtree(work)  # nothing else is compiled of it


def main() -> None:
    parser = speed_parser(__doc__)
    parser.add_argument(
        "--llama-cpp",
        type=json.loads,
        required=True,
        help="JSON {path: directory of the user's own build or null, cuda: on, off or auto, "
        "portable: true or false, version}",
    )
    arguments = parser.parse_args()
    command = [extra_tool(TOOL, arguments.llama_cpp, arguments.threads), "--output", "json"]
    command += ["--model", arguments.form, "--repetitions", arguments.repetitions]
    command += ["--n-prompt", arguments.prompt_tokens, "--n-gen", arguments.text_tokens]
    command += ["--threads", arguments.threads]
    command += ["--n-gpu-layers", ALL_LAYERS if arguments.gpus else 0]
    # Threads wait as for people who run the file, and not as in a build (rules/common.smk).
    os.environ.pop("OMP_WAIT_POLICY", None)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{arguments.form}: {TOOL} ended with status {done.returncode}: {last}")
    prompt, text = json.loads(done.stdout)
    found = {"backend": text["backends"], "prompt": prompt["samples_ts"]}
    print(json.dumps(found | {"text": text["samples_ts"]}))


if __name__ == "__main__":
    program(main)

"""Compile the CUDA extension of exllamav2 or exllamav3, or find it installed: a link to the module.

By themselves both compile when they are first imported, each job at once, behind a lock that stays
for ever if its job is killed. So it is done once a machine, before any job needs it, and jobs
import the module that is there. It is kept in the user's cache (lib/record/shared_cache.py) for
each version of the tool, of torch and of Python and for each kind of GPU: the visible ones, or
those of TORCH_CUDA_ARCH_LIST. To be run in resources/environments/NAME.
"""

import argparse
import os
import subprocess
import sys
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from lib.errors import UserError, program
from lib.record.shared_cache import made_once


def facts(tool: str) -> bytes:
    """All on which the compiled module depends. Raises UserError for a torch without CUDA."""
    import torch

    if not torch.version.cuda:
        told = f"torch {torch.__version__} of this Python is built without CUDA; take one from"
        raise UserError(f"{told} an index with CUDA, or name an interpreter under `environments`")
    count = torch.cuda.device_count()
    kinds = sorted({torch.cuda.get_device_capability(number) for number in range(count)})
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or str(kinds)
    versions = metadata.version(tool), torch.__version__, torch.version.cuda, sys.version
    return " ".join(map(str, (*versions, asked))).encode()


def compile_in(tool: str, jobs: int, home: Path) -> None:
    """Let the tool compile its module in the directory `home`. Raises UserError if it fails."""
    home.mkdir(parents=True)
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(home), "MAX_JOBS": str(jobs)}
    done = subprocess.run([sys.executable, "-c", f"import {tool}.ext"], env=environment)
    if done.returncode:
        raise UserError(f"{tool}: its CUDA extension could not be compiled, see above; nvcc needed")


def module(tool: str, jobs: int) -> Path:
    """The file of the compiled module. Raises UserError if there is none."""
    if find_spec(tool) is None:
        raise UserError(f"this Python has no {tool}; run it by resources/environments/{tool}")
    name = f"{tool}_ext"
    if (there := find_spec(name)) and there.origin:
        return Path(there.origin)
    home = made_once(f"extensions/{tool}", facts(tool), partial(compile_in, tool, jobs))
    if found := next(home.rglob(f"{name}.so"), None):
        return found
    raise UserError(f"{home}: {tool} compiled no {name}.so; delete the directory and try again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=("exllamav2", "exllamav3"))
    parser.add_argument("--jobs", type=int, default=4, help="compilers at once")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    arguments = parser.parse_args()
    file = module(arguments.tool, arguments.jobs)
    arguments.output.mkdir()
    (arguments.output / file.name).symlink_to(file)


if __name__ == "__main__":
    program(main)

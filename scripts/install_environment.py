"""Make a directory with a link to a tool's own Python environment, `venv`.

The environment has the packages of envs/NAME.txt. It is made once a machine, with venv and pip, in
the user's cache (QUANTMILL_CACHE, else XDG_CACHE_HOME/quantmill, else ~/.cache/quantmill), in a
directory for each set of pins and each Python; all checkouts and working directories share it. It
cannot be moved, because its programs name it. With --python it is the environment of that
interpreter, and nothing is installed.
"""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

from lib.errors import UserError, program
from lib.record.shared_cache import made_once
from lib.record.tools import REPOSITORY


def installed(requirements: Path) -> Path:
    """The environment with these packages, made now if it is not there."""
    facts = requirements.read_bytes() + f"{sys.version} {sys.base_prefix}".encode()
    return made_once(f"environments/{requirements.stem}", facts, partial(install, requirements))


def install(requirements: Path, home: Path) -> None:
    """Make the environment in the directory `home`. Raises UserError if venv or pip fails."""
    pip = [home / "bin/python", "-m", "pip", "install", "--requirement", requirements]
    for command in ([sys.executable, "-m", "venv", home], pip):
        if status := subprocess.run(list(map(str, command))).returncode:
            ended = f"{Path(command[0]).name} {command[2]} ended with status {status}; see above"
            raise UserError(f"{requirements.name} could not be installed: {ended}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of a file of envs/ without .txt: lines PACKAGE==VERSION")
    parser.add_argument("--python", type=Path, nargs="?", help="DIR/bin/python, in its place")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    arguments = parser.parse_args()
    requirements = REPOSITORY / "envs" / f"{arguments.name}.txt"
    if not requirements.is_file():
        raise UserError(f"{requirements}: there is no such file")
    if own := arguments.python:
        home, proof = own.absolute().parents[1], own.absolute()
    else:
        home = installed(requirements)
        proof = home / "complete"
    arguments.output.mkdir()
    (arguments.output / "venv").symlink_to(home)
    # A file, by which the plan sees that the environment is still there.
    (arguments.output / "complete").symlink_to(proof)


if __name__ == "__main__":
    program(main)

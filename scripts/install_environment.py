"""Make a directory with a link to a tool's own Python environment, `venv`.

The environment has the packages of envs/NAME.txt. It is made once a machine, with venv and pip, in
the user's cache (QUANTMILL_CACHE, else XDG_CACHE_HOME/quantmill, else ~/.cache/quantmill), in a
directory for each set of pins and each Python; all checkouts and working directories share it. It
cannot be moved, because its programs name it.
"""

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from lib.errors import UserError, program
from lib.record.tools import REPOSITORY, cache_directory


def installed(requirements: Path) -> Path:
    """The environment with these packages, made now if it is not there."""
    python = f"{sys.version} {sys.base_prefix}"
    key = hashlib.sha256(requirements.read_bytes() + python.encode()).hexdigest()[:12]
    home = cache_directory() / "environments" / f"{requirements.stem}-{key}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_name(f"{home.name}.hold"), "w") as hold:
        fcntl.flock(hold, fcntl.LOCK_EX)  # two working directories may want it at once
        if not (home / "complete").exists():
            install(home, requirements)
    return home


def install(home: Path, requirements: Path) -> None:
    """Make the environment in the directory `home`; its file `complete` is written last.

    Raises UserError if venv or pip fails.
    """
    shutil.rmtree(home, ignore_errors=True)
    pip = [home / "bin/python", "-m", "pip", "install", "--requirement", requirements]
    for command in ([sys.executable, "-m", "venv", home], pip):
        if status := subprocess.run(list(map(str, command))).returncode:
            ended = f"{Path(command[0]).name} {command[2]} ended with status {status}; see above"
            raise UserError(f"{requirements.name} could not be installed: {ended}")
    (home / "complete").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of a file of envs/ without .txt: lines PACKAGE==VERSION")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    arguments = parser.parse_args()
    requirements = REPOSITORY / "envs" / f"{arguments.name}.txt"
    if not requirements.is_file():
        raise UserError(f"{requirements}: there is no such file")
    home = installed(requirements)
    arguments.output.mkdir()
    (arguments.output / "venv").symlink_to(home)
    # A file, by which the plan sees that the environment is still there.
    (arguments.output / "complete").symlink_to(home / "complete")


if __name__ == "__main__":
    program(main)

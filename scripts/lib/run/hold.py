"""Holds: only one run at a time works in a directory, and only one step on an artifact.

A hold is an flock(2) on a file. It ends with its process, so a killed run leaves no hold behind.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lib.errors import UserError
from lib.record.layout import RUN_STATE, building_directories, hold_file

RUN = RUN_STATE / "run.hold"
_of_this_process = []  # kept open as long as the process lives; children do not inherit it


def hold_directory() -> None:
    """Hold the working directory until this process ends.

    Raises UserError if another run holds it.
    """
    _of_this_process.append(_hold_run())


@contextmanager
def held_directory() -> Iterator[None]:
    """Hold the working directory in a `with` block. Raises UserError if another run holds it."""
    with _hold_run():
        yield


def _hold_run() -> IO:
    RUN.parent.mkdir(parents=True, exist_ok=True)
    if not (file := _hold(RUN)):
        raise UserError(f"Another run is at work in {Path.cwd()}. Wait until it ends, or end it.")
    return file


def _hold(path: Path) -> IO | None:
    """Hold a file until the returned file is closed; None if another process holds it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def held(building: Path) -> bool:
    """Whether a step is at work in this build directory."""
    return _is_held(hold_file(building))


def held_run() -> bool:
    """Whether a run is at work in the working directory."""
    return _is_held(RUN)


def _is_held(path: Path) -> bool:
    try:
        file = _hold(path)
    except OSError:  # its directory has just been removed
        return False
    if file:
        file.close()
    return file is None


def clear_abandoned() -> None:
    """Remove the build directories of killed steps, but not those of steps that still run."""
    for building in building_directories("results", "resources"):
        if file := _hold(hold_file(building)):
            with file:
                shutil.rmtree(building)

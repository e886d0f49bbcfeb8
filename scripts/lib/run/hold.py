"""Holds: only one run at a time works in a directory, and only one step on an artifact.

A hold is an flock(2) on a file. It ends with its process, so a killed run leaves no hold behind.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lib.errors import UserError
from lib.record.layout import RUN_STATE, clear, hold_file, left_by_steps
from lib.record.locks import NoLocks, hold, is_held, lock

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


def insist_free() -> None:
    """Raise UserError if another run is at work in the working directory."""
    if not _of_this_process and held_run():
        raise _another()


def _another() -> UserError:
    return UserError(f"Another run is at work in {Path.cwd()}. Wait until it ends, or end it.")


def _hold_run() -> IO:
    RUN.parent.mkdir(parents=True, exist_ok=True)
    if not (file := hold(RUN)):
        raise _another()
    try:
        lock(file)
    except NoLocks:
        print("note    this file system has no locks: take care that no two runs work here")
    return file


def held(building: Path) -> bool:
    """Whether a step is at work in this build directory."""
    return is_held(hold_file(building))


def held_run() -> bool:
    """Whether a run is at work in the working directory."""
    return is_held(RUN)


def clear_abandoned() -> None:
    """Remove what killed steps have left, but nothing where a step is still at work."""
    for buildings, parts in left_by_steps("results", "resources"):
        at_work = False
        for building in buildings:
            if file := hold(hold_file(building)):
                with file:
                    clear(building)
                with suppress(OSError):  # where `clear` has left it
                    building.rmdir()
            else:
                at_work = True
        if not at_work:
            for part in parts:
                part.unlink(missing_ok=True)

"""One run at a time in a working directory: a lock that a killed run cannot leave behind."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = Path(".snakemake/quantmill/run.lock")
_held = []  # kept open as long as the process lives; children do not inherit it


class Busy(Exception):
    """Another run is at work in this directory."""


def hold_directory() -> None:
    """Take the lock for the life of this process. Raises Busy where another run has it."""
    _held.append(_locked())


@contextmanager
def held_directory() -> Iterator[None]:
    """Hold the lock for a while. Raises Busy where another run has it."""
    with _locked():
        yield


def _locked() -> IO:
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    file = open(LOCK, "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Busy(
            f"Another run is at work in {Path.cwd()}. Wait until it ends, or end it."
        ) from error
    return file


def clear_abandoned() -> None:
    """Remove the directories in which killed runs' steps were at work; not those of steps that still run."""
    for top in ("results", "resources"):
        for directory, names, _ in os.walk(top):
            hidden = [name for name in names if name.startswith(".")]
            names[:] = [name for name in names if name not in hidden]
            for name in hidden:
                if name.endswith(".building"):
                    _remove_unlocked(Path(directory, name))


def _remove_unlocked(stage: Path) -> None:
    with open(stage / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        shutil.rmtree(stage)

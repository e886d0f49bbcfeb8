"""What is made once a machine, in the cache that all checkouts of a user share."""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.record.tools import cache_directory


def place(name: str, facts: bytes) -> Path:
    """The directory NAME-KEY of the cache, there or not. facts: as in `made_once`."""
    return cache_directory() / f"{name}-{hashlib.sha256(facts).hexdigest()[:12]}"


@contextmanager
def held(home: Path) -> Iterator[None]:
    """Hold a directory of the cache: two working directories may want it at once."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_name(f"{home.name}.hold"), "w") as hold:
        fcntl.flock(hold, fcntl.LOCK_EX)
        yield


def made_once(name: str, facts: bytes, make: Callable[[Path], None]) -> Path:
    """The directory NAME-KEY of the cache, made now if it is not there or not whole.

    name: may begin with directories. facts: on what its contents depend; KEY is their digest. make:
    makes the directory, which is not there then. Its file `complete` is written last.
    """
    home = place(name, facts)
    with held(home):
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            make(home)
            (home / "complete").touch()
    return home

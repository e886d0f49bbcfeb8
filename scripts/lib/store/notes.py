"""What a working directory knows of its store: files in the directory of the run's state.

Steps are processes of their own, on other machines too, so each fact is a file of its own. What
fails for the store is said once a run, by whoever notes it first.
"""

import shutil
from pathlib import Path

from lib.record.layout import RUN_STATE
from lib.store.entry import Entry

HERE = RUN_STATE / "store"
REFUSED = "refused"
TAKEN, PUT = "taken", "put"


def begin() -> None:
    """Forget what an earlier run has taken and put, and what failed then."""
    for name in (TAKEN, PUT, "off"):
        shutil.rmtree(HERE / name, ignore_errors=True)


def done(verb: str, recipe: str, size: int) -> None:
    """Note that the artifact of a recipe (its digest) was TAKEN or PUT. size: bytes brought."""
    _write(HERE / verb / recipe, str(size))


def summary(verb: str) -> tuple[int, int]:
    """(how many artifacts, bytes) were TAKEN or PUT in this run."""
    sizes = [int(file.read_text() or 0) for file in (HERE / verb).glob("*")]
    return len(sizes), sum(sizes)


def turn_off(verb: str) -> bool:
    """Do without the store for the rest of this run; whether nobody has said so yet.

    verb: TAKEN, for neither taking nor putting, or PUT.
    """
    path = HERE / "off" / verb
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def is_off(verb: str) -> bool:
    """Whether this run does without taking (TAKEN) or putting (PUT)."""
    return any((HERE / "off" / name).exists() for name in {TAKEN, verb})


def refuse(entry: Entry) -> None:
    """Note that an entry is not to be taken any more: its bytes are not what it says."""
    _write(HERE / REFUSED / entry.record.digest, entry.identity)


def is_refused(entry: Entry) -> bool:
    """Whether this very entry was refused before."""
    try:
        return (HERE / REFUSED / entry.record.digest).read_text() == entry.identity
    except FileNotFoundError:
        return False


def was_refused(recipe: str) -> bool:
    """Whether an entry of this recipe was refused, and none was put in its place since."""
    return (HERE / REFUSED / recipe).exists()


def forgive(recipe: str) -> None:
    """A good entry is there now."""
    (HERE / REFUSED / recipe).unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

"""Cold artifacts: quants whose bytes lie in another place only, and the notes that say so.

The note of an artifact X is `X.cold.json`, an artifact itself, made by the rule `cool`:

    {"quantmill_cold": 1, "artifact", "sha256", "bytes", "header"}

`header` is the beginning of a GGUF file, up to its first tensor, zlib in base64: what reports and
cards read of it. The note's own record says in `notes` where the bytes were seen before they were
deleted, {"place": {"store": location, "hub": {"repo", "commit", "files": {name in a directory, ""
for a file: name in the repository}}}} and the artifact's "record", or why they were not:
{"kept": reason, "final": bool}.
"""

import atexit
import base64
import json
import os
import tempfile
import zlib
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.record import recipe as recipes
from lib.record.recipe import Record

RULE, MADE = "cool", "made"  # the rule that makes notes, and the role of what they are of
SUFFIX = ".cold.json"
SCHEMA = 1


def note_of(artifact: str) -> str:
    """The path of an artifact's note."""
    return artifact + SUFFIX


def place_of(artifact: str, record: Record | None) -> dict[str, Any] | None:
    """Where the bytes of an artifact that is not here were seen; None if it is not cold.

    record: the artifact's. A note of other bytes than the record's counts for nothing.
    """
    note = recipes.read(note_of(artifact))
    if record is None or note is None or note.inputs.get(MADE) != record.sha256:
        return None
    return note.notes.get("place") if os.path.exists(note.artifact) else None


def noted_on_hub(artifact: str) -> dict[str, Any] | None:
    """Where on the hub an artifact was, by its note; it may be here again. None: nowhere."""
    note = recipes.read(note_of(artifact))
    return ((note and note.notes.get("place")) or {}).get("hub")


def is_kept(artifact: str, record: Record | None, digest: str) -> bool:
    """Whether no place will ever hold an artifact, as the last attempt has found.

    record: the artifact's. digest: that of its note's recipe.
    """
    note = recipes.read(note_of(artifact))
    if record is None or note is None or not note.fits(digest):
        return False
    return note.inputs.get(MADE) == record.sha256 and bool(note.notes.get("final"))


def restore(artifact: str) -> None:
    """Write the record of a cold artifact that lacks it.

    Snakemake deletes records with what a step should make: they are lost if the step that brings an
    artifact back is killed, or if its place does not answer.
    """
    if os.path.lexists(artifact) or os.path.lexists(recipes.path_of(artifact)):
        return
    note = recipes.read(note_of(artifact))
    if note and os.path.exists(note.artifact) and (record := note.notes.get("record")):
        recipes.write(Record(**record))


def follow(record: Record) -> None:
    """Have the note of an artifact, if there is one, keep its record as it is now."""
    note = recipes.read(note_of(record.artifact))
    if note and "record" in note.notes:
        note.notes["record"] = asdict(record)
        recipes.write(note)


def forget(artifact: str) -> None:
    """Forget that an artifact is cold: no place has its bytes."""
    for path in (recipes.path_of(note_of(artifact)), note_of(artifact)):
        Path(path).unlink(missing_ok=True)


def header_of(file: Path, size: int) -> str:
    """The first `size` bytes of a file, as a note has them."""
    with file.open("rb") as opened:
        return base64.b64encode(zlib.compress(opened.read(size))).decode()


@cache
def readable(file: Path) -> Path:
    """A GGUF file whose header can be read: itself, or if it is cold a stand-in from its note.

    The stand-in has the size of the file, takes no room, and goes with this process. Raises
    UserError if neither is there.
    """
    if file.exists() or not os.path.exists(note_of(str(file))):
        return file
    try:
        note = json.loads(Path(note_of(str(file))).read_text(encoding="utf-8"))
        header, size = zlib.decompress(base64.b64decode(note["header"])), int(note["bytes"])
    except (ValueError, KeyError, TypeError, zlib.error):
        raise UserError(f"{note_of(str(file))}: damaged; delete it, and it is made anew") from None
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    stand_in = Path(folder.name, file.name)
    with stand_in.open("wb") as opened:
        opened.write(header)
        opened.truncate(size)
    return stand_in

"""An entry of a store: how one artifact was built, with what came out, and all that it came from.

An entry is JSON: {"quantmill_store": 1, "at": …, "record": …, "origins": {digest: …}}. A record is
{artifact, recipe, digest, bytes, sha256, files, inputs, notes}, as lib/record/recipe.py has them;
`origins` are the records of all that the artifact was made from, and of what that was made from.
They are what a report and a card tell of intermediates, which are not needed themselves.

Whoever can write into a store can write anything: nothing of an entry is used before `read` has
checked it. That its bytes are what the recipe gives, only its builder knows; hence signatures
(lib/store/store.py).
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from lib.errors import UserError
from lib.record import recipe as recipes
from lib.record.digests import flushed_digests
from lib.record.layout import SNAKEMAKE_MARK
from lib.record.recipe import Record

SCHEMA = 1
LONGEST, LONGEST_PATH = 255, 1000  # bytes of a file's name, and of that with its folders
MAPPINGS = ("recipe", "files", "inputs", "notes", "machine")  # of a record
_HEX = re.compile("[0-9a-f]{64}")


class Refused(UserError):
    """An entry, or what lies under it, is damaged, foreign or not to be trusted; says why."""


class Foreign(Refused):
    """An entry that may be good, but not to us: we ask for another key, or know no such version."""


@dataclass(frozen=True)
class Entry:
    """What a store has of one artifact.

    origins: {digest of a recipe: record}. identity: sha256 (hex) of the document it was read from.
    """

    record: Record
    origins: dict[str, Record] = field(default_factory=dict)
    identity: str = ""

    def to_json(self) -> bytes:
        """The document of an entry that is put now."""
        data = {
            "quantmill_store": SCHEMA,
            "at": datetime.now(UTC).isoformat(),
            "record": _plain(self.record),
            "origins": {digest: _plain(record) for digest, record in self.origins.items()},
        }
        return (recipes.canonical(data) + "\n").encode()

    @classmethod
    def read(cls, document: bytes, digest: str) -> "Entry":
        """The entry of the recipe with this digest. Raises Refused."""
        try:
            data = json.loads(document)
            if data["quantmill_store"] != SCHEMA:
                raise Foreign("it is of another version of Quantmill")
            origins = {key: _record(each, key) for key, each in data["origins"].items()}
            identity = hashlib.sha256(document).hexdigest()
            entry = cls(_record(data["record"], digest), origins, identity)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Refused("its record is damaged") from None
        if entry.record.is_link or not all(is_sha256(sha) for _, sha in entry.contents.values()):
            raise Refused("it is the record of a link")
        return entry

    @property
    def contents(self) -> dict[str, tuple[int, str]]:
        """{name in the directory, "" for a file: (bytes, sha256)}."""
        return self.record.contents

    @property
    def sha256s(self) -> set[str]:
        """The sha256 of its files."""
        return {sha256 for _, sha256 in self.contents.values()}

    def is_at(self, made: Path) -> bool:
        """Whether exactly these bytes lie at `made`; they are flushed and hashed."""
        files = {made / name if name else made: sha for name, (_, sha) in self.contents.items()}
        return flushed_digests(list(files), {}) == files


def _plain(record: Record) -> dict[str, Any]:
    """A record as JSON: without what somebody has accepted it for, which is theirs to say."""
    return {key: value for key, value in asdict(record).items() if value and key != "accepted"}


def _record(data: dict[str, Any], digest: str) -> Record:
    """A record from its JSON. Raises Refused, KeyError, TypeError or ValueError."""
    known = {each.name for each in fields(Record)} - {"accepted"}
    if not all(isinstance(data.get(name, {}), dict) for name in MAPPINGS):
        raise TypeError
    record = Record(**{"inputs": {}, **{key: data[key] for key in data.keys() & known}})
    if record.digest != digest or recipes.digest(record.recipe) != digest:
        raise Refused("it is the record of another recipe")
    whole = isinstance(record.bytes, int) and record.bytes > 0 and is_sha256(record.sha256)
    for name, (size, sha256) in record.files.items():
        if not is_inside(name) or any(map(record.files.get, _folders(name))):
            raise Refused(f"a file of it is called {name[:99]!r}")
        whole = whole and isinstance(size, int) and size >= 0
        whole = whole and (is_sha256(sha256) or (sha256 == "" and record.sha256 == digest))
    if record.files:
        whole = whole and sum(size for size, _ in record.files.values()) == record.bytes
        whole = whole and record.sha256 in (recipes.digest(record.files), digest)
    whole = whole and isinstance(record.artifact, str) and record.artifact.isprintable()
    if not whole or not all(map(is_sha256, record.inputs.values())):
        raise Refused("its record is damaged")
    return record


def is_sha256(text: Any) -> bool:
    """Whether a value is a sha256 in hex."""
    return isinstance(text, str) and bool(_HEX.fullmatch(text))


def is_inside(name: Any) -> bool:
    """Whether a file of this name lies in its directory, under a name that is plainly written."""
    if not isinstance(name, str) or not name or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    plain = path.as_posix() == name and path.parts and not path.is_absolute()
    sizes = [len(part.encode(errors="replace")) for part in (name, *path.parts)]
    short = sizes[0] <= LONGEST_PATH and max(sizes[1:], default=0) <= LONGEST
    return bool(plain) and short and not {"..", SNAKEMAKE_MARK} & set(path.parts)


def _folders(name: str) -> list[str]:
    """The names of the directories in which a file of this name lies."""
    return [parent.as_posix() for parent in PurePosixPath(name).parents]

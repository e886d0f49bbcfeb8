"""Recipes and records.

A *recipe* is a JSON document that describes all that decides an artifact's bytes. Its *digest* is
the sha256 of its canonical form.

A *record* is the file `ARTIFACT.recipe.json`. It holds the recipe from which the artifact was
built, the result (bytes, sha256) and the sha256 of each input. It is written last and by rename, so
a record also proves that its artifact is complete.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

SCHEMA = 1
SUFFIX = ".recipe.json"
# A reason that begins with MADE_FROM only follows from a change of an input. ONLY_MADE_FROM stands
# for these where there is no other reason.
MADE_FROM = "made from "
ONLY_MADE_FROM = "what it is made from changed"


def normalise(value: Any) -> Any:
    """`value` in plain JSON types, equal values written alike: 5.0 becomes 5, a tuple a list."""
    if type(value) is str or value is None:  # most values: a plan asks this for each artifact
        return value
    if isinstance(value, dict):
        return {str(key): normalise(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [normalise(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def canonical(value: Any) -> str:
    """The canonical form of a value: JSON with sorted keys and no white space.

    Equal values have the same form. Raises ValueError for NaN and infinity.
    """
    return _written(normalise(value))


# One encoder for all: json.dumps makes a new one for every call with options.
_written = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


def digest(recipe: Any, normal: bool = False) -> str:
    """sha256 (hex) of a recipe's canonical form. normal: `recipe` comes from `normalise`."""
    return hashlib.sha256((_written if normal else canonical)(recipe).encode()).hexdigest()


@dataclass(slots=True)
class Record:
    """The record of a built artifact.

    artifact: its path. recipe: the recipe that it was built from. digest: sha256 (hex) of that.
    bytes, sha256 (hex): of the file; for a directory, the sum, and the digest of `files`.
    files: {name: [bytes, sha256]} of the files in a directory.
    inputs: {role: sha256 of the input}. notes: facts that the step has noted, by name.
    accepted: other recipes that the artifact was accepted for, the newest last. They differ from
        `recipe` only in code or tools (lib/planning/acceptance.py). Each is {digest, by: the user,
        at: the time, differs: [one line for each difference]}.
    machine: the kind of machine that it was built on (lib/record/bound.py), if its bytes are bound
        to that; empty in records of others, and in old ones.
    """

    artifact: str
    recipe: dict[str, Any]
    digest: str
    bytes: int
    sha256: str
    files: dict[str, list] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)

    def fits(self, digest: str) -> bool:
        """Whether the artifact was built from the recipe with this digest, or accepted for it."""
        return self.acceptance(digest) is not None or self.digest == digest

    def acceptance(self, digest: str) -> dict[str, Any] | None:
        """The last entry of `accepted` for the recipe with this digest; None if there is none.

        Also None if the artifact was built from that recipe.
        """
        if self.digest == digest:
            return None
        found = (entry for entry in reversed(self.accepted) if entry["digest"] == digest)
        return next(found, None)

    @property
    def contents(self) -> dict[str, tuple[int, str]]:
        """{name in the directory, "" for a file: (bytes, sha256)}."""
        files = self.files or {"": [self.bytes, self.sha256]}
        return {name: (size, sha256) for name, (size, sha256) in files.items()}

    @property
    def is_link(self) -> bool:
        """Whether the artifact, or all that is in it, is a link to a file kept elsewhere."""
        return bool(self.notes.get("link"))


def path_of(artifact: str) -> str:
    """The path of an artifact's record."""
    return artifact + SUFFIX


def read(artifact: str, top: str | os.PathLike = "") -> Record | None:
    """The record beside an artifact; None if it is missing, damaged or another artifact's.

    top: the working directory; "" for the current directory.
    """
    try:
        with open(os.path.join(top, path_of(artifact)), "rb") as file:
            data = json.loads(file.read())
        if data["quantmill"] != SCHEMA or data["artifact"] != artifact:
            return None
        accepted = data.get("accepted") or []
        if not all(isinstance(entry["digest"], str) for entry in accepted):
            return None
        return Record(
            artifact,
            data["recipe"],
            data["digest"],
            data["bytes"],
            data["sha256"],
            data.get("files") or {},
            data["inputs"],
            data.get("notes") or {},
            accepted,
            data.get("machine") or {},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(record: Record) -> None:
    """Write a record beside its artifact. It is renamed into place: it is whole or not there."""
    data = {
        "quantmill": SCHEMA,
        "artifact": record.artifact,
        "digest": record.digest,
        "bytes": record.bytes,
        "sha256": record.sha256,
        "inputs": record.inputs,
        "recipe": normalise(record.recipe),
    }
    optional = {"files": record.files, "notes": record.notes, "accepted": record.accepted}
    optional |= {"machine": record.machine}
    data |= {name: value for name, value in optional.items() if value}
    write_json(Path(path_of(record.artifact)), data)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON: flushed to the disk, then renamed to `path`. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def difference(old: Any, new: Any, where: str = "") -> list[str]:
    """The values in which two recipes differ, one line each.

    For example `options.merge.models[1].weight 0.3 -> 0.5`. where: the keys that lead to `old`.
    """
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            at = f"{where}.{key}" if where else str(key)
            lines += difference(old.get(key, _ABSENT), new.get(key, _ABSENT), at)
        return lines
    if isinstance(old, list) and isinstance(new, list):
        pairs = enumerate(zip_longest(old, new, fillvalue=_ABSENT))
        return [line for i, (a, b) in pairs for line in difference(a, b, f"{where}[{i}]")]
    return [f"{where} {_show(old)} -> {_show(new)}"]


_ABSENT = object()


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "(nothing)"
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

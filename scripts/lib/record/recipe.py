"""Recipes: the canonical description of all that decides an artifact's bytes, and the record that lies beside it.

A *recipe* is a JSON document; its *digest* is the sha256 of its canonical form. A *record* is the file
`ARTIFACT.recipe.json`: the recipe from which the artifact was built, what came out (bytes, sha256) and what
it was made from (sha256 of each input). It is written last and by rename, so it is the proof of completeness too.
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
# How the reasons of that begin which only follows another change, and what is said where there is no other.
MADE_FROM = "made from "
ONLY_MADE_FROM = "what it is made from changed"


def normalise(value: Any) -> Any:
    """Plain JSON types in which equal values are written alike (5.0 is 5; a tuple is a list)."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, dict):
        return {str(key): normalise(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [normalise(item) for item in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return value


def canonical(value: Any) -> str:
    """One text for equal values: sorted keys, no white space. Raises ValueError for NaN and infinity."""
    return _written(normalise(value))


# One encoder for all: json.dumps makes a new one for every call with options.
_written = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


def digest(recipe: Any, normal: bool = False) -> str:
    """sha256 (hex) of the canonical form. normal: it was made by `normalise`, which need not be done again."""
    return hashlib.sha256((_written if normal else canonical)(recipe).encode()).hexdigest()


@dataclass(slots=True)
class Record:
    """What lies beside a built artifact.

    files: a directory's members as {name: [bytes, sha256]}.
    accepted: the recipes as which it counts too, although it was made from `recipe`, which differs from them in code or
        tools alone: [{digest, by: a user, at: a time, differs: [a line each]}], the last one last (lib/planning/acceptance.py).
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

    def fits(self, digest: str) -> bool:
        """Whether the artifact is what the recipe of this digest makes, or was accepted as that."""
        return self.acceptance(digest) is not None or self.digest == digest

    def acceptance(self, digest: str) -> dict[str, Any] | None:
        """Who has accepted the artifact as what this recipe makes, and when; None where it was made from it."""
        if self.digest == digest:
            return None
        found = (entry for entry in reversed(self.accepted) if entry["digest"] == digest)
        return next(found, None)

    @property
    def is_link(self) -> bool:
        """Whether the artifact, or what is in it, only links to a file that is kept elsewhere."""
        return bool(self.notes.get("link"))


def path_of(artifact: str) -> str:
    """Where the record of an artifact lies."""
    return artifact + SUFFIX


def read(artifact: str, top: str | os.PathLike = "") -> Record | None:
    """The record beside an artifact; None where it is missing, empty, half written or another artifact's.

    top: the working directory, if it is not this one.
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
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(record: Record) -> None:
    """Write the record beside its artifact, by rename, so that it is either whole or not there."""
    data = {
        "quantmill": SCHEMA,
        "artifact": record.artifact,
        "digest": record.digest,
        "bytes": record.bytes,
        "sha256": record.sha256,
        "inputs": record.inputs,
        "recipe": normalise(record.recipe),
    }
    if record.files:
        data["files"] = record.files
    if record.notes:
        data["notes"] = record.notes
    if record.accepted:
        data["accepted"] = record.accepted
    write_json(Path(path_of(record.artifact)), data)


def write_json(path: Path, data: Any) -> None:
    """Write JSON durably and by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def difference(old: Any, new: Any, where: str = "") -> list[str]:
    """The leaves in which two recipes differ, one line each: `options.merge.models[1].weight 0.3 -> 0.5`."""
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

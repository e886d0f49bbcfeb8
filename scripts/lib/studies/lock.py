"""The lock of studies, config/studies.lock.yaml: which candidate was chosen.

    studies:
      Which:
        rounds:                                # candidates that stay, of each round but the last
        - {chunks: 4, kept: [ties-0.3, ties-0.5]}
        winner:
          candidate: ties-0.5
          values: {method: ties, w: 0.5}
          random_seed: 0
          merge: {merge_method: ties, …}       # the whole merge: what a model takes

`snakemake choose` writes it, people commit it. A build depends on it and never on what was measured
(design: a result that is in no file decides nothing).
"""

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib.errors import UserError
from lib.keys import bounds
from lib.keys.values import show

LOCK_FILE = Path("config/studies.lock.yaml")
HEADER = """\
# Which candidate of each study was chosen: written by `snakemake choose`, to be committed.
# A model with `merge: {study: NAME}` is made by the merge that stands here.
"""
# The keys of a round, and of a winner with their types.
ROUND = ("chunks", "kept")
WINNER = {"candidate": str, "values": dict, "random_seed": int, "merge": dict, "picked": bool}
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Winner:
    """The chosen candidate: its id, what was varied, and all that makes it.

    picked: somebody named it, whatever was measured.
    """

    candidate: str
    values: dict[str, Any]
    random_seed: int
    merge: dict[str, Any]
    picked: bool = False


@dataclass
class Chosen:
    """The entry of a study.

    rounds: of each round but the last {chunks: its chunks, kept: [ids of those that stay]}, as far
    as they are decided. winner: None until the last round is.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    winner: Winner | None = None


def read(workdir: Path = Path()) -> dict[str, Chosen]:
    """{study: its entry} of a working directory; empty without a lock.

    Raises UserError if the file is not a lock.
    """
    path = Path(workdir) / LOCK_FILE
    try:
        data = yaml.load(path.read_bytes(), Loader=Loader)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({text}); restore it or delete it") from None
    try:
        document = _mapping({} if data is None else data, "it", ("studies",))
        bounds.insist(document)
        studies = document.get("studies") or {}
        return {name: _entry(name, entry) for name, entry in _mapping(studies, "studies").items()}
    except (UserError, ValueError) as error:
        raise UserError(f"{path}: not a lock ({error}); restore it or delete it") from None


def _entry(study: Any, entry: Any) -> Chosen:
    """A study's entry. Raises ValueError if it is none."""
    if not isinstance(study, str):
        raise ValueError(f"the name {show(study)} is not text")
    entry = _mapping(entry, study, ("rounds", "winner"))
    rounds = entry.get("rounds") or []
    if not isinstance(rounds, list):
        raise ValueError(f"the rounds of {study} are no list")
    for each in rounds:
        each = _mapping(each, f"a round of {study}", ROUND)
        if missing := [key for key in ROUND if key not in each]:
            raise ValueError(f"a round of {study} has no {missing[0]}")
        chunks, kept = each["chunks"], each["kept"]
        if chunks is not None and not (_is(chunks, int) and chunks > 0):
            raise ValueError(f"the chunks of a round of {study} are {show(chunks)}")
        if not isinstance(kept, list) or not kept or not all(_is(name, str) for name in kept):
            raise ValueError(f"kept of a round of {study} is no list of candidates")
    winner = entry.get("winner")
    return Chosen(rounds, None if winner is None else _winner(study, winner))


def _winner(study: str, winner: Any) -> Winner:
    """A study's winner. Raises ValueError if it is none."""
    what = f"the winner of {study}"
    winner = {"picked": False} | _mapping(winner, what, WINNER)
    for key, type_ in WINNER.items():
        if key not in winner:
            raise ValueError(f"{what} has no {key}")
        if not _is(winner[key], type_):
            raise ValueError(f"{key} of {what} is {show(winner[key])}")
    if not 0 <= winner["random_seed"] < 2**32:
        raise ValueError(f"random_seed of {what} is {show(winner['random_seed'])}")
    return Winner(**winner)


def _mapping(value: Any, what: str, known: Collection[str] | None = None) -> dict[Any, Any]:
    """The value. Raises ValueError if it is no mapping, or has a key that is not in `known`."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no mapping")
    for key in value if known is not None else ():
        if key not in known:
            raise ValueError(f"{what} has the unknown key {show(key)}")
    return value


def _is(value: Any, type_: type) -> bool:
    """Whether a value has a type; true and false are no numbers."""
    return isinstance(value, type_) and not (type_ is int and isinstance(value, bool))


def write(chosen: dict[str, Chosen], workdir: Path = Path()) -> None:
    """Write the lock of a working directory, by rename. Equal locks give equal bytes."""
    studies = {}
    for name, entry in sorted(chosen.items()):
        studies[name] = {key: value for key, value in asdict(entry).items() if value}
        if entry.winner and not entry.winner.picked:
            del studies[name]["winner"]["picked"]
    path = Path(workdir) / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    style = {"sort_keys": False, "default_flow_style": None, "width": 100, "allow_unicode": True}
    text = HEADER + yaml.safe_dump({"studies": studies}, **style)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)

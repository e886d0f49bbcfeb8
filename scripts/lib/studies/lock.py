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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib.errors import UserError

LOCK_FILE = Path("config/studies.lock.yaml")
HEADER = """\
# Which candidate of each study was chosen: written by `snakemake choose`, to be committed.
# A model with `merge: {study: NAME}` is made by the merge that stands here.
"""
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
        data = yaml.load(path.read_bytes(), Loader=Loader) or {}
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML ({text}); restore it or delete it") from None
    try:
        studies = data.pop("studies", None) or {}
        if data:
            raise ValueError(f"unknown key {next(iter(data))!r}")
        found = {}
        for name, entry in studies.items():
            winner = entry.pop("winner", None)
            rounds = entry.pop("rounds", None) or []
            if entry or not all({"chunks", "kept"} == set(each) for each in rounds):
                raise ValueError(f"the entry of {name!r} has other keys than rounds and winner")
            found[name] = Chosen(rounds, Winner(**winner) if winner else None)
            if winner and not isinstance(found[name].winner.merge, dict):
                raise ValueError(f"the winner of {name!r} has no merge")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a lock ({error}); restore it or delete it") from None
    return found


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

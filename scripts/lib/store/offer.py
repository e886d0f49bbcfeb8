"""What the plan tells a step of the store, in a file beside its wanted recipe.

A step does not look at QUANTMILL_STORE itself: a job on another machine may have other variables,
and would then take what nobody has signed. No file: the step builds, and puts nothing anywhere.
lib/record/wanted.py is not the place, because programs whose code decides bytes import it.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from lib.errors import UserError
from lib.store.store import Settings


@dataclass(frozen=True)
class Offer:
    """What a step may do with the store.

    settings: the store's. take: whether it may take the artifact instead of building it. planned:
    how many bytes the plan has found there; None: nothing. listed: whether Snakemake has the step's
    inputs, so that it can build too. put: whether what it builds is put there. behind: {path:
    digest of the recipe} of all that the artifact is made from, and what that is made from. inputs:
    {role: sha256} of what those bytes there were made from.
    """

    settings: Settings
    take: bool
    planned: int | None
    listed: bool
    put: bool
    behind: dict[str, str]
    inputs: dict[str, str] | None = None

    @classmethod
    def read(cls, path: Path) -> "Offer":
        """Read an offer. Raises UserError if it is damaged."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(**data | {"settings": Settings(**data["settings"])})
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: damaged. Run the same command again.") from None

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(json.dumps(asdict(self), sort_keys=True), encoding="utf-8")
        os.replace(part, path)

"""The wanted recipe: the document in which the plan tells a step's programs what to build.

lib/planning/handoff.py tells where it lies and when. This module has only the document itself,
because programs whose code decides bytes import it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.errors import UserError


@dataclass(frozen=True)
class WantedRecipe:
    """How one stale artifact is to be built. Paths are relative to the working directory.

    artifact: the path of the artifact, a file or a directory.
    outputs: the paths of all that the step makes; the artifact is the first.
    directory: whether the artifact is a directory.
    links: whether the artifact is a link, or a directory of links, to files kept elsewhere.
    rule: the rule that builds it.
    digest: sha256 (hex) of the recipe in its canonical form.
    recipe: all that decides the bytes, in plain JSON types (lib/record/recipe.py).
    inputs: {role: (path, sha256 (hex) of the recipe that the input must have)}.
    left: when the file was written, in ns. It makes each file different; it is not compared.
    """

    artifact: str
    outputs: tuple[str, ...]
    directory: bool
    links: bool
    rule: str
    digest: str
    recipe: dict[str, Any]
    inputs: dict[str, tuple[str, str]]
    left: int = field(default=0, compare=False)

    @classmethod
    def read(cls, path: Path) -> "WantedRecipe":
        """Read a wanted recipe. Raises UserError if the file is missing or damaged."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            inputs = {role: (up, digest) for role, (up, digest) in document["inputs"].items()}
            outputs = tuple(document["outputs"])
            return cls(**document | {"inputs": inputs, "outputs": outputs})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            text = "this wanted recipe is missing or damaged. Run the same command again."
            raise UserError(f"{path}: {text}") from None

    def to_json(self) -> str:
        """The JSON text of its file. Keys are sorted; what a step copies keeps this order."""
        return json.dumps(vars(self), sort_keys=True, ensure_ascii=False, allow_nan=False)

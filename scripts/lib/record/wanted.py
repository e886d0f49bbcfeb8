"""The wanted recipe: what a step is to build, as the plan leaves it for the programs of the step.

lib/planning/handoff.py tells where it lies and when. Nothing but the document is here, because
programs whose code decides bytes read it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.errors import UserError


@dataclass(frozen=True)
class WantedRecipe:
    """What one stale artifact is to become. Paths are relative to the working directory.

    artifact: the path of what is built, a file or a directory.
    outputs: the paths of all that the step makes; the artifact is the first.
    directory: whether the artifact is a directory.
    links: whether the artifact, or all that is in it, only links to files that are kept elsewhere.
    rule: the rule that builds it.
    digest: sha256 (hex) of the recipe in its canonical form.
    recipe: all that decides the bytes, in plain JSON types, as lib/record/recipe.py tells.
    inputs: what it is made from, {role: (path, sha256 (hex) of the recipe that it is to have)}.
    left: when the file was left, in ns; so that it is another one each time. It is not compared.
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
        """The wanted recipe in a file. Raises UserError where there is none."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            inputs = {role: (up, digest) for role, (up, digest) in document["inputs"].items()}
            outputs = tuple(document["outputs"])
            return cls(**document | {"inputs": inputs, "outputs": outputs})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            text = "this wanted recipe is missing or damaged. Run the same command again."
            raise UserError(f"{path}: {text}") from None

    def to_json(self) -> str:
        """The text of its file. Its keys are sorted: what a step writes of it has their order."""
        return json.dumps(vars(self), sort_keys=True, ensure_ascii=False, allow_nan=False)

"""The family of full weights: a merge or a mixture of experts, published as it is."""

from typing import Any

from lib.record.artifact import Artifact
from lib.stages.family import Family, Forms, entry


class Safetensors(Family):
    """The full weights of what mergekit makes. They follow from `merge` or `moe`: no section."""

    name, title, phrase = "safetensors", "Full weights", ": full weights"
    library = "transformers"
    colours = ("#59636e", "#9ba6b2")
    repository_says = "Repository for the merge, or the mixture of experts."
    quantized = {"merge": False, "moe": False}

    def corpora(self, model: Any) -> set[str]:
        """No texts."""
        return set()

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """The files of the merge, on main."""
        return {"main": [entry(merge, "") for merge in made.artifacts]}

    def gated(self, made: Forms) -> dict[str, Artifact]:
        """Nothing: other forms are measured against the full weights."""
        return {}

    def made_from(self, name: str, made: Forms, merge: Artifact | None = None) -> dict[str, str]:
        """Nothing: the merge itself is published."""
        return {}


FAMILY = Safetensors()

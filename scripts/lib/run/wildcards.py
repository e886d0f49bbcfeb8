"""Regular expressions for the wildcards of rules of which several make the same paths."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lib.config.schema import Config
from lib.planning.graph import Graph

NOTHING = "(?!)"


def models_where(config: Config, has: Callable[[Any], bool]) -> str:
    """The names of the models of which `has(the model's section)` is true."""
    return _any(name for name, model in config.models.items() if has(model))


def conversions(config: Config, own: bool) -> str:
    """The conversions' file names, which look like quants' otherwise.

    own: those that are GGUF files of the user's, or the others.
    """
    return _any(
        f"{name}-{model.conversion}"
        for name, model in config.models.items()
        if model.conversion and bool(model.own_gguf) is own
    )


def reclaimed(graph: Graph, rule: str, value: Callable[[Any], str]) -> str:
    """The artifacts of a rule that are deleted once nothing needs them.

    value: what the wildcard is of an artifact.
    """
    if not graph.config.reclaim:
        return NOTHING
    return _any(value(a) for a in graph if a.rule == rule and a.temporary)


def stem(artifact: Any) -> str:
    """An artifact's file name without its suffix."""
    return Path(artifact.path).stem


def model_name(artifact: Any) -> str:
    """The model that an artifact is of."""
    return artifact.model


def _any(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names)) or NOTHING

"""Regular expressions for wildcards that tell rules with the same paths apart."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lib.config.schema import Config
from lib.planning.graph import Graph

NOTHING = "(?!)"


def models_where(config: Config, has: Callable[[Any], bool]) -> str:
    """Matches the names of the models for which `has(model's section)` is true."""
    return _any(name for name, model in config.models.items() if has(model))


def conversions(graph: Graph, own: bool) -> str:
    """Matches the names (without suffix) of conversions, which look like those of quants.

    own: of those that are GGUF files of the user; else of the others.
    """
    rule = "source_gguf" if own else "convert"
    return _any(dict.fromkeys(stem(artifact) for artifact in graph if artifact.rule == rule))


def adapters(config: Config) -> str:
    """Matches the names of LoRA adapters."""
    return _any(name for model in config.models.values() if model.gguf for name in model.gguf.lora)


def reclaimed(graph: Graph, rule: str, value: Callable[[Any], str]) -> str:
    """Matches the artifacts of a rule that are deleted once nothing needs them.

    value(artifact): the wildcard's value for an artifact.
    """
    return _any(value(a) for a in graph if a.rule == rule and a.temporary)


def made_by(graph: Graph, rule: str, before: str, after: str) -> str:
    """Matches the paths of a rule's artifacts, without what comes `before` and `after` in each."""
    paths = (artifact.path for artifact in graph if artifact.rule == rule)
    return _any(path.removeprefix(before).removesuffix(after) for path in paths)


def stem(artifact: Any) -> str:
    """An artifact's file name without its suffix."""
    return Path(artifact.path).stem


def owner(made: Any) -> str:
    """The wildcard `model` of a merge or mixture: a model, or the place of a candidate."""
    return made.path.removeprefix("results/").removesuffix("/safetensors")


def _any(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names)) or NOTHING

"""Finds the model references in a configuration of mergekit-moe, and replaces them.

moe_config.py writes moe.yaml with this module, so its code decides the bytes of mixtures. Code that
only judges a configuration is in lib/config/moes.py. A reference is written, read and replaced as
in a merge (lib/formats/merge_references.py).
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from lib.formats.merge_references import (
    Reference,
    Where,
    as_mapping,
    as_sequence,
    merge_references,
    substitute_references,
)

EXPERTS = ("experts", "shared_experts")


def moe_references(moe: Mapping[str, Any]) -> list[Reference]:
    """All references in a mixture, the base model's first. A model named twice has two entries."""
    return [
        Reference(found.parts, where)
        for container, key, where in _slots(moe)
        for found in merge_references({"base_model": container[key]})
    ]


def substitute_moe_references(moe: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """A copy of the mixture's configuration with references replaced.

    mapping: {part as in Reference.parts: its replacement}. A part that is not in `mapping` stays as
    it is.
    """
    changed = copy.deepcopy(dict(moe))
    for container, key, _ in list(_slots(changed)):
        found = substitute_references({"base_model": container[key]}, mapping)
        container[key] = found["base_model"]
    return changed


def _slots(moe: Mapping[str, Any]) -> Iterator[tuple[Any, str, Where]]:
    """Yield (container, key, where) for each place that holds a reference."""
    if moe.get("base_model") is not None:
        yield moe, "base_model", ("base_model",)
    for kind in EXPERTS:
        for index, entry in enumerate(as_sequence(moe.get(kind))):
            expert = as_mapping(entry)
            if expert.get("source_model") is not None:
                yield expert, "source_model", (kind, index, "source_model")

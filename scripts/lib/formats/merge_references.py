"""Finds the model references in a mergekit configuration, and replaces them.

merge_config.py writes merge.yaml with this module, so its code decides the bytes of merges. Code
that only judges a configuration is in lib/config/merges.py. Standard library only, because
importing mergekit takes seconds.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Where = tuple[str | int, ...]

# The values of tokenizer_source that name no model.
TOKENIZER_WORDS = ("base", "union")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[^@+\s]+)?", re.ASCII)
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Reference:
    """A reference to a model in a merge.

    parts: (model,), or (model, LoRA adapter) for `model+adapter`. Each is as written: `Name` for a
        model of the same config, `./directory`, `org/name` or `org/name@revision`.
    where: the keys that lead to the reference in the merge, such as ("models", 0, "model").
    """

    parts: tuple[str, ...]
    where: Where


def reference_kind(text: str) -> str:
    """The kind of a part of a reference: "model" (of the config), "directory", "hub" or "unknown".

    Only the text is judged; nothing is looked up.
    """
    if text in (".", "..") or text.startswith(("./", "../", "/")):
        return "unknown" if "@" in text else "directory"
    if HUB_ID.fullmatch(text):
        return "hub"
    return "model" if MODEL_NAME.fullmatch(text) else "unknown"


def merge_references(merge: Mapping[str, Any]) -> list[Reference]:
    """All references in a merge, in order. A model that is named twice has two entries."""
    return [Reference(_parts(container[key]), where) for container, key, where in _slots(merge)]


def substitute_references(merge: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """A copy of the merge with references replaced.

    mapping: {part as in Reference.parts: its replacement}. Model and adapter of `model+adapter` are
    replaced separately. A part that is not in `mapping` stays as it is.
    """
    changed = copy.deepcopy(dict(merge))
    for container, key, _ in list(_slots(changed)):
        container[key] = _replaced(container[key], mapping)
    return changed


def _slots(merge: Mapping[str, Any]) -> Iterator[tuple[Any, str, Where]]:
    """Yield (container, key, where) for each place of a merge that holds a reference."""
    yield from _slot(merge, "base_model", ())
    yield from _inputs(merge, ())
    for name, module in as_mapping(merge.get("modules")).items():
        yield from _inputs(as_mapping(module), ("modules", name))
    yield from _slot(merge, "tokenizer_source", (), words=TOKENIZER_WORDS)
    tokenizer = as_mapping(merge.get("tokenizer"))
    yield from _slot(tokenizer, "source", ("tokenizer",), words=TOKENIZER_WORDS)
    for token, settings in as_mapping(tokenizer.get("tokens")).items():
        where = ("tokenizer", "tokens", token)
        source = as_mapping(settings).get("source")
        if as_mapping(source).get("kind") == "model_token":
            yield from _slot(source, "model", (*where, "source"))
        elif as_mapping(source).get("kind") is None:
            yield from _slot(as_mapping(settings), "source", where)


def _inputs(part: Mapping[str, Any], where: Where) -> Iterator[tuple[Any, str, Where]]:
    """As `_slots`, for `models` and `slices` of a merge or of one of its modules."""
    for index, entry in enumerate(as_sequence(part.get("models"))):
        yield from _slot(as_mapping(entry), "model", (*where, "models", index))
    for index, entry in enumerate(as_sequence(part.get("slices"))):
        here = (*where, "slices", index)
        yield from _slot(as_mapping(entry), "base_model", here)
        for number, source in enumerate(as_sequence(as_mapping(entry).get("sources"))):
            yield from _slot(as_mapping(source), "model", (*here, "sources", number))


def _slot(
    container: Any, key: str, where: Where, words: tuple[str, ...] = ()
) -> Iterator[tuple[Any, str, Where]]:
    value = container.get(key)
    if value is not None and value not in words:
        yield container, key, (*where, key)


def as_mapping(value: Any) -> Any:
    """`value` if it is a mapping, else {}."""
    return value if isinstance(value, Mapping) else {}


def as_sequence(value: Any) -> Any:
    """`value` if it is a list or tuple, else ()."""
    return value if isinstance(value, list | tuple) else ()


def _parts(value: Any) -> tuple[str, ...]:
    """The parts of a reference, a text or a mapping {model:, lora:}."""
    if not isinstance(value, Mapping):
        return tuple(str(value).split("+"))
    parts = (_path_text(value.get(key)) for key in ("model", "lora"))
    return tuple(part for part in parts if part is not None)


def _path_text(value: Any) -> str | None:
    """`path@revision`, from such a text or from mergekit's {path:, revision:}."""
    if isinstance(value, Mapping):
        path, revision = value.get("path"), value.get("revision")
        return f"{path}@{revision}" if revision else str(path)
    return None if value is None else str(value)


def _replaced(value: Any, mapping: Mapping[str, str]) -> Any:
    if not isinstance(value, Mapping):
        return "+".join(mapping.get(part, part) for part in _parts(value))
    changed = dict(value)
    for key in ("model", "lora"):
        text = _path_text(changed.get(key))
        if text in mapping:
            changed[key] = mapping[text]
    return changed

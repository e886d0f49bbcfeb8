"""The models that a mergekit configuration names: where they stand in it, and others in their place.

Pure standard library: importing mergekit takes seconds. merge_config.py writes merge.yaml with it, so this is code
that decides the bytes of merges; what only judges a configuration is in merges.py.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Where = tuple[str | int, ...]

# What tokenizer_source may be besides a model.
TOKENIZER_WORDS = ("base", "union")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[^@+\s]+)?", re.ASCII)
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Reference:
    """A model that a merge names.

    parts: the model, and if the reference is `model+adapter` the LoRA adapter; each as written:
        `Name` of the same config, `./directory`, `org/name` or `org/name@revision`.
    where: the keys that lead to it in the merge.
    """

    parts: tuple[str, ...]
    where: Where


def reference_kind(text: str) -> str:
    """What a part is by its form: "model" (of the config), "directory", "hub" or "unknown"."""
    if text in (".", "..") or text.startswith(("./", "../", "/")):
        return "unknown" if "@" in text else "directory"
    if HUB_ID.fullmatch(text):
        return "hub"
    return "model" if MODEL_NAME.fullmatch(text) else "unknown"


def merge_references(merge: Mapping[str, Any]) -> list[Reference]:
    """Every model that the merge names, in order of appearance; one entry for each place."""
    return [Reference(_parts(container[key]), where) for container, key, where in _slots(merge)]


def substitute_references(merge: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """A copy of the merge in which each reference that `mapping` has is replaced.

    Keys of `mapping` are as in Reference.parts; the halves of `model+adapter` are replaced each for
    itself. What it does not have stays as it is.
    """
    changed = copy.deepcopy(dict(merge))
    for container, key, _ in list(_slots(changed)):
        container[key] = _replaced(container[key], mapping)
    return changed


def _slots(merge: Mapping[str, Any]) -> Iterator[tuple[Any, str, Where]]:
    """The places of a merge that hold a model reference: (container, key, where)."""
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
    """The references in `models` and `slices` of a merge or of one of its modules."""
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
    """The value, or an empty mapping where it is none."""
    return value if isinstance(value, Mapping) else {}


def as_sequence(value: Any) -> Any:
    """The value, or nothing where it is no list."""
    return value if isinstance(value, list | tuple) else ()


def _parts(value: Any) -> tuple[str, ...]:
    """A reference taken apart, in either of mergekit's notations."""
    if not isinstance(value, Mapping):
        return tuple(str(value).split("+"))
    parts = (_path_text(value.get(key)) for key in ("model", "lora"))
    return tuple(part for part in parts if part is not None)


def _path_text(value: Any) -> str | None:
    """`path@revision` of a string or of mergekit's {path:, revision:}."""
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

"""Find gross mistakes in a mergekit configuration.

mergekit is not imported, because that takes seconds. tests/test_config.py keeps the constants in
step with mergekit's own models and registry (0.1.5).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lib.formats.merge_references import Where, as_mapping, as_sequence
from lib.keys.values import suggestion

Mistake = tuple[Where, str]  # (key path, message)

# Merge methods, and whether each must be given a base_model.
METHODS = {
    "arcee_fusion": True, "breadcrumbs": True, "breadcrumbs_ties": True, "dare_linear": True,
    "dare_ties": True, "della": True, "della_linear": True, "karcher": False, "linear": False,
    "model_stock": True, "multislerp": False, "nearswap": True, "nuslerp": False,
    "passthrough": False, "ram": True, "ramplus_tl": True, "sce": True, "slerp": True,
    "task_arithmetic": True, "ties": True,
}  # fmt: skip
# The parameters of each method, and those that it must be given.
_OF_TASKS = ("int8_mask", "normalize", "rescale", "lambda", "weight", "density")
PARAMETERS = {
    "arcee_fusion": (), "breadcrumbs": (*_OF_TASKS, "gamma"),
    "breadcrumbs_ties": (*_OF_TASKS, "gamma"), "dare_linear": _OF_TASKS, "dare_ties": _OF_TASKS,
    "della": (*_OF_TASKS, "epsilon"), "della_linear": (*_OF_TASKS, "epsilon"),
    "karcher": ("max_iter", "tol"), "linear": ("weight", "normalize"),
    "model_stock": ("filter_wise",), "multislerp": ("weight", "normalize_weights", "eps"),
    "nearswap": ("t",), "nuslerp": ("weight", "nuslerp_row_wise", "nuslerp_flatten"),
    "passthrough": ("scale",), "ram": ("epsilon",), "ramplus_tl": ("r", "alpha", "epsilon"),
    "sce": ("int8_mask", "select_topk"), "slerp": ("t",), "task_arithmetic": _OF_TASKS,
    "ties": _OF_TASKS,
}  # fmt: skip
REQUIRED = {
    "breadcrumbs": "weight", "breadcrumbs_ties": "weight", "dare_linear": "weight",
    "dare_ties": "weight", "della": "weight", "della_linear": "weight", "linear": "weight",
    "multislerp": "weight", "nearswap": "t", "nuslerp": "weight", "slerp": "t",
    "task_arithmetic": "weight", "ties": "weight",
}  # fmt: skip
# Keys of mergekit's models. mergekit itself ignores a key that it does not know.
MERGE_KEYS = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
MODEL_KEYS = ("model", "parameters")
SLICE_KEYS = ("sources", "base_model", "residual_weight", "parameters")
SOURCE_KEYS = ("model", "layer_range", "parameters")
MODULE_KEYS = ("slices", "models", "parameters")
TOKENIZER_KEYS = ("source", "tokens", "pad_to_multiple_of")
DTYPES = ("bfloat16", "float16", "float32", "float64", "int64")
CHAT_TEMPLATES = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")
PLAIN = str | int | float | bool | None


def check_merge(merge: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find mistakes that mergekit would report late or not at all.

    References to models are not checked here.
    """
    yield from check_keys(merge, (), MERGE_KEYS)
    method = merge.get("merge_method")
    if method is None:
        yield (), "merge_method is missing"
    elif not isinstance(method, str) or method not in METHODS:
        message = f"{method!r} is no merge method of mergekit"
        yield ("merge_method",), with_known(message, method, METHODS)
    elif METHODS[method] and not merge.get("base_model"):
        in_slices = [
            as_mapping(entry).get("base_model") for entry in as_sequence(merge.get("slices"))
        ]
        if not merge.get("modules") and not (in_slices and all(in_slices)):
            yield (), f"merge_method {method} needs a base_model"
    given = [key for key in ("models", "slices", "modules") if merge.get(key)]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        yield (), f"exactly one of models, slices and modules must be given, not {got}"
    if merge.get("tokenizer") and merge.get("tokenizer_source"):
        yield (), "tokenizer and tokenizer_source exclude each other"
    for key in ("dtype", "out_dtype"):
        name = merge.get(key)
        if name is not None and str(name).removeprefix("torch.") not in DTYPES:
            yield (key,), with_known(f"{name!r} is no data type of mergekit", name, DTYPES)
    template = merge.get("chat_template")
    if template is not None and str(template) not in CHAT_TEMPLATES and "{" not in str(template):
        message = f"{template!r} is neither a jinja template nor the name of one"
        yield ("chat_template",), with_known(message, template, CHAT_TEMPLATES)
    yield from _check_inputs(merge, ())
    if merge.get("modules") and not isinstance(merge["modules"], Mapping):
        yield ("modules",), "must be a mapping of modules"
    for name, module in as_mapping(merge.get("modules")).items():
        yield from check_keys(module, ("modules", name), MODULE_KEYS)
        yield from _check_inputs(as_mapping(module), ("modules", name))
    if merge.get("tokenizer") is not None:
        yield from check_keys(merge["tokenizer"], ("tokenizer",), TOKENIZER_KEYS)
    yield from check_values(merge, ())


def check_parameters(merge: Mapping[str, Any], others: bool = False) -> Iterator[Mistake]:
    """Find parameters that the method does not have, which mergekit ignores.

    A merge by `slices` or `modules` is looked at as far as parameters stand in it. others: those of
    another method are no mistake, because configurations that people publish have them.
    """
    method = merge.get("merge_method")
    if not isinstance(method, str) or method not in PARAMETERS:
        return
    known = PARAMETERS[method]
    passed = set().union(*PARAMETERS.values()) if others else known
    for where, parameters in _parameters(merge, ()):
        for name in parameters:
            if name not in passed:
                has = ", ".join(known) or "none"
                near = suggestion(name, known)
                yield (*where, name), f"{method} has no parameter {name!r}{near} (it has: {has})"


def check_required(merge: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find the parameter that the method needs and that stands nowhere in the merge."""
    method = merge.get("merge_method")
    needed = REQUIRED.get(method) if isinstance(method, str) else None
    if needed and not any(needed in given for _, given in _parameters(merge, ())):
        yield ("parameters",), f"{method} needs the parameter {needed!r}"


def _parameters(part: Any, where: Where) -> Iterator[tuple[Where, Mapping[str, Any]]]:
    """Yield (key path, mapping) of each `parameters` in a merge."""
    for key, entry in as_mapping(part).items():
        if key == "parameters":
            yield (*where, key), as_mapping(entry)
        elif key not in ("tokenizer", "chat_template"):
            yield from _parameters(entry, (*where, key))
    for index, entry in enumerate(as_sequence(part)):
        yield from _parameters(entry, (*where, index))


def check_values(value: Any, where: Where) -> Iterator[Mistake]:
    """Report values that are no plain data: YAML's dates and infinite numbers are not."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                yield (*where, key), f"the key {key!r} is not text; write it in quotes"
            yield from check_values(entry, (*where, key))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from check_values(entry, (*where, index))
    elif not isinstance(value, PLAIN) or (isinstance(value, float) and not math.isfinite(value)):
        yield where, f"{value!r} is not text, a finite number, true or false"


def _check_inputs(part: Mapping[str, Any], where: Where) -> Iterator[Mistake]:
    yield from check_list(part.get("models"), (*where, "models"), MODEL_KEYS, "model")
    yield from check_list(part.get("slices"), (*where, "slices"), SLICE_KEYS, "sources")
    for index, entry in enumerate(as_sequence(part.get("slices"))):
        here = (*where, "slices", index, "sources")
        yield from check_list(as_mapping(entry).get("sources"), here, SOURCE_KEYS, "model")


def check_list(
    value: Any, where: Where, known: tuple[str, ...], required: str
) -> Iterator[Mistake]:
    """Report what is no list of mappings with these keys. required: a key that each must have."""
    if value is None:
        return
    if not isinstance(value, list | tuple):
        yield where, f"must be a list of mappings with {required}"
        return
    for index, entry in enumerate(value):
        yield from check_keys(entry, (*where, index), known)
        if isinstance(entry, Mapping) and not entry.get(required):
            yield (*where, index), f"{required} is missing"


def check_keys(value: Any, where: Where, known: tuple[str, ...]) -> Iterator[Mistake]:
    """Report what is no mapping, and its keys that mergekit does not have."""
    if not isinstance(value, Mapping):
        yield where, f"must be a mapping with keys of {', '.join(known)}"
        return
    for key in value:
        if key not in known:
            yield (*where, key), with_known(f"mergekit has no key {key!r} here", key, known)


def with_known(message: str, got: Any, known: Iterable[str]) -> str:
    """The message with the known word that is near to `got`, if there is one, and all of them."""
    return f"{message}{suggestion(got, known)} (known: {', '.join(known)})"

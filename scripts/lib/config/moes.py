"""Find gross mistakes in a configuration of mergekit-moe.

mergekit is not imported, because that takes seconds. tests/test_moe.py keeps the constants in step
with mergekit's own models (0.1.5).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lib.config.merges import DTYPES, Mistake, check_keys, check_list, check_values, with_known
from lib.formats.merge_references import Where, as_mapping, as_sequence
from lib.formats.moe_architectures import GATE_MODES, OUTPUTS, SIGNS, named
from lib.formats.moe_references import EXPERTS
from lib.keys.values import show

MOE_KEYS = (
    "base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts",
    "architecture",
)  # fmt: skip
SCALES = ("noise_scale", "residual_scale")
EXPERT_KEYS = ("source_model", *(f"{sign}_prompts" for sign in SIGNS), *SCALES)


def check_moe(moe: Mapping[str, Any]) -> Iterator[Mistake]:
    """Find mistakes that mergekit would report late or not at all.

    References to models are not checked here, nor what kinds of models they are.
    """
    yield from check_keys(moe, (), MOE_KEYS)
    if not moe.get("base_model"):
        yield (), "base_model is missing"
    mode = moe.get("gate_mode", "hidden")
    if mode not in GATE_MODES:
        yield ("gate_mode",), with_known(f"{show(mode)} is no gate mode of mergekit-moe", mode,
                                         GATE_MODES)  # fmt: skip
    dtype = moe.get("dtype")
    if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
        yield ("dtype",), with_known(f"{show(dtype)} is no data type of mergekit", dtype, DTYPES)
    wanted = moe.get("architecture")
    if wanted is not None and not (isinstance(wanted, str) and wanted and named(wanted)):
        names = [output.name for output in OUTPUTS]
        yield ("architecture",), with_known(f"{show(wanted)} is none of mergekit-moe's", wanted,
                                            names)  # fmt: skip
    for kind in EXPERTS:
        yield from check_list(moe.get(kind), (kind,), EXPERT_KEYS, "source_model")
        for index, expert in enumerate(as_sequence(moe.get(kind))):
            yield from _check_expert(as_mapping(expert), (kind, index), mode)
    yield from _check_numbers(moe)
    yield from _check_alike(moe, mode)
    yield from check_values(moe, ())


def is_sound(moe: Mapping[str, Any]) -> bool:
    """Whether `check_moe` finds no mistake."""
    return next(check_moe(moe), None) is None


def _check_expert(expert: Mapping[str, Any], here: Where, mode: Any) -> Iterator[Mistake]:
    for key in SCALES:
        value = expert.get(key)
        if value is not None and not _is_number(value):
            yield (*here, key), f"{show(value)} is not a number"
    for sign in SIGNS:
        key = f"{sign}_prompts"
        prompts = expert.get(key)
        if prompts is None:
            continue
        if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
            yield (*here, key), f"must be a list of texts, not {show(prompts)}"
        elif not all(prompt.strip() for prompt in prompts):
            yield (*here, key), "has an empty text"
    if here[0] == "experts" and not expert.get("positive_prompts") and mode in GATE_MODES:
        if mode == "uniform_random":
            yield here, "positive_prompts are missing: mergekit asks for them by uniform_random too"
        elif mode != "random":
            yield here, f"positive_prompts are missing: gate_mode {mode} makes the gates of them"


def _check_numbers(moe: Mapping[str, Any]) -> Iterator[Mistake]:
    count, used = len(as_sequence(moe.get("experts"))), moe.get("experts_per_token", 2)
    if not count:
        yield (), "experts are missing: a list of mappings with source_model"
    if isinstance(used, bool) or not isinstance(used, int) or used < 1:
        yield ("experts_per_token",), f"{show(used)} is not a whole number of at least 1"
    elif 0 < count < used:
        default = "" if "experts_per_token" in moe else " by default"
        yield (), f"experts_per_token is {used}{default}, and the number of experts {count}"
    shared = as_sequence(moe.get("shared_experts"))
    if len(shared) > 1:
        yield ("shared_experts",), f"mergekit-moe takes one at most, not {len(shared)}"


def _check_alike(moe: Mapping[str, Any], mode: Any) -> Iterator[Mistake]:
    """Report experts that no gate could tell apart. Drawn gates are for training, which will."""
    experts = [as_mapping(expert) for expert in as_sequence(moe.get("experts"))]
    if mode == "random" or not experts:
        return
    prompts = [[expert.get(f"{sign}_prompts") or [] for sign in SIGNS] for expert in experts]
    if prompts[0][0] and all(one == prompts[0] for one in prompts):
        yield ("experts",), "all have the same prompts, so that no gate tells them apart"
    models = [expert.get("source_model") for expert in experts]
    if models[0] and all(model == models[0] for model in models):
        what = "all have the same source_model, so that the mixture says what that model says"
        yield ("experts",), f"{what}; gate_mode: random makes one to be trained"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Targets of a mix, as bytes that its file may have."""

from collections.abc import Mapping
from typing import Any

from lib.errors import UserError
from lib.formats.memory import Shape, room
from lib.formats.quants import TENSOR_BITS
from lib.units import human

# The types of a cache that llama.cpp offers (--cache-type-k and -v).
CACHE_TYPES = ("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
CONTEXT = 16384  # tokens, where the config does not say; no more than the model was trained for
TRIES = 4  # quantizations to find a mix by its KLD, at most


def budget(options: Mapping[str, Any], parameters: int, shape: Shape | None) -> int:
    """The most bytes that the file may have.

    options: one target with what belongs to it, as in a mix's recipe. parameters: the model's
    weights. shape: the model's; None if it is not known. Raises UserError for `memory` without it.
    """
    if "target_size" in options:
        return options["target_size"]
    if "target_bpw" in options:
        return int(options["target_bpw"] * parameters / 8)
    if shape is None:
        raise UserError("memory: what a context of this model takes is not known; use target_size")
    context = context_of(options, shape.trained)
    value_bytes = TENSOR_BITS[options.get("cache_type", "f16")] / 8
    return room(options["memory"]) - shape.beside_weights(context, value_bytes)


def context_of(options: Mapping[str, Any], trained: int | None) -> int:
    """The tokens of the cache of a target `memory`. trained: the model's longest context."""
    return options.get("context") or min(CONTEXT, trained or CONTEXT)


def impossible(options: Mapping[str, Any], allowed: int, least: int) -> str | None:
    """Why no mix meets its target, after the key that names it; None if one does.

    allowed: bytes that its file may have. least: of the smallest one.
    """
    if allowed >= least:
        return None
    key = next(key for key in ("target_size", "target_bpw", "memory") if key in options)
    left = human(max(0, allowed))
    return f"{key}: {left} are left for the file, and the smallest possible has {human(least)}"

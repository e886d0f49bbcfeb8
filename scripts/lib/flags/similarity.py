"""Spells the options of a comparison as similarity.py takes them."""

from collections.abc import Mapping, Sequence
from typing import Any


def similarity_flags(
    options: Mapping[str, Any], base: Sequence[str], models: Sequence[str]
) -> list[str]:
    """The flags that name what is compared.

    base, models: directories, in the order of `options`; none of a comparison that is fresh.
    """
    pairs = zip(options["models"], models, strict=False)
    return ["--base", options["base"], *base, *(w for pair in pairs for w in ("--model", *pair))]

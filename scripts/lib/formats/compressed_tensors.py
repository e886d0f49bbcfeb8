"""Schemes of compressed-tensors, and which tensors of a model llmcompressor (0.14.0) gives them.

Standard library only.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lib.formats.safetensors import read_header

Shapes = Mapping[str, tuple[int, ...]]  # {tensor: shape, the row's width last}


class Scheme(NamedTuple):
    """A preset of compressed-tensors (0.19.0, quantization/quant_scheme.py).

    bits: of a weight, with its share of a group's scale. width: a number that divides the width of
    every row; 1 where each row has one scale.
    """

    bits: float
    width: int


SCHEMES = {
    "FP8_DYNAMIC": Scheme(8, 1),
    "FP8_BLOCK": Scheme(8, 128),  # of the weights any width, but not of the activations
    "NVFP4A16": Scheme(4.5, 16),
    "NVFP4": Scheme(4.5, 16),
    "MXFP4A16": Scheme(4.25, 32),
    "W4A16": Scheme(4.125, 128),
    "W8A16": Scheme(8.125, 128),
    "INT8": Scheme(8, 1),
}
# Rounds activations to 4 bits with a scale for the whole tensor, which a text must tell.
CALIBRATED = ("NVFP4",)
# {method that finds better roundings with a text: its schemes}
METHODS = {"gptq": ("W4A16", "W8A16"), "awq": ("W4A16",)}
# What stays as it is, as `ignore` in config.json says it: modules, or `re:` and how they begin.
# llmcompressor knows tensors by their names alone, and would quantize embeddings and routers too.
KEPT = (
    "re:.*lm_head$", "re:.*embed.*", "re:.*gate$", "re:.*router.*", "re:.*conv.*",
    "re:.*(vision|visual|audio|multi_modal|mm_projector).*",
)  # fmt: skip


def shapes_in(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in those of the files that are safetensors."""
    headers = (read_header(file) for file in files if file.suffix == ".safetensors")
    return {name: tensor.shape for header in headers for name, tensor in header.tensors.items()}


def kept(shapes: Shapes) -> list[str]:
    """The modules that stay as they are: KEPT, and those whose weights are no matrix."""
    others = (name.removesuffix(".weight") for name, dims in shapes.items() if len(dims) != 2)
    # Norms it leaves out itself; stacked experts have no `.weight`, and it takes them apart.
    named = {name for name in others if f"{name}.weight" in shapes and not name.endswith("norm")}
    return [*KEPT, *sorted(named)]


def quantized(shapes: Shapes) -> Iterator[str]:
    """Yield the names of the tensors that are quantized."""
    patterns = [re.compile(pattern.removeprefix("re:")) for pattern in KEPT]
    for name, dims in shapes.items():
        module = name.removesuffix(".weight")
        matrix = module != name and len(dims) == 2 and not module.endswith("norm")
        stacked = len(dims) == 3 and ("gate_up_proj" in name or "down_proj" in name)
        if (matrix or stacked) and not any(pattern.match(module) for pattern in patterns):
            yield name


def fault(scheme: str, shapes: Shapes, calibrated: bool = False) -> str | None:
    """Why llmcompressor cannot give a model this scheme, in a sentence; None if it can.

    calibrated: with a text.
    """
    # llmcompressor writes Mixtral's experts by other names when it is given a text.
    experts = ".w1." if calibrated else ".experts."
    if (calibrated or scheme == "INT8") and any(experts in name for name in shapes):
        return (
            f"transformers (5.17.0) cannot load such experts in {scheme}, so nothing could be told"
        )
    names, width = list(quantized(shapes)), SCHEMES[scheme].width
    if not names:
        return f"no matrix in safetensors that {scheme} could quantize"
    odd = [name for name in names if shapes[name][-1] % width]
    if not odd:
        return None
    others = f" (and those of {len(odd) - 1} more)" if len(odd) > 1 else ""
    size = shapes[odd[0]][-1]
    return f"{scheme} has a scale for {width} weights, and the rows of {odd[0]} have {size}{others}"


def quantized_bytes(scheme: str, shapes: Shapes, bytes_per_weight: float) -> int:
    """Bytes of the weights in this scheme. bytes_per_weight: of those that stay as they are."""
    matrices = sum(math.prod(shapes[name]) for name in quantized(shapes))
    rest = sum(map(math.prod, shapes.values())) - matrices
    return round(matrices * SCHEMES[scheme].bits / 8 + rest * bytes_per_weight)

"""Tensors that llama-quantize stores in another type than a quant's mixture has for them.

Most types pack 256 weights of a row into a block. Rows that are not a multiple of that get a type
with smaller blocks; the tool calls it fallback quantization and says so in its log alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib.formats.mixture import Dims, Shape, block_size, misfits, quant_types

if TYPE_CHECKING:  # gguf is slow to import, and nothing is needed of it here
    from lib.formats.gguf_file import GgufFile


@dataclass(frozen=True)
class Fallbacks:
    """count: how many of a quant's `tensors` they are; types: what they are stored in, the most
    frequent first; block: weights in a block of the type that did not fit."""

    count: int
    tensors: int
    types: tuple[str, ...]
    block: int = 256

    def __str__(self) -> str:
        """What is said of a quant, after its name."""
        have, are = ("has", "is") if self.count == 1 else ("have", "are")
        return (
            f"{self.count} of {self.tensors} tensors {have} rows that are not a multiple of "
            f"{self.block} and {are} stored as {', '.join(self.types)}"
        )


def planned(
    tensors: Mapping[str, Dims], shape: Shape, type_: str, options: Mapping[str, Any], imatrix: bool
) -> Fallbacks | None:
    """Those of a quant that is not made yet, from its tensors' shapes; None where there are none.

    Arguments as for `lib.formats.mixture.quant_types`.
    """
    if all(dims[0] % 256 == 0 for dims in tensors.values() if len(dims) > 1):
        return None
    wanted = misfits(tensors, shape, type_, options, imatrix)
    types = quant_types(tensors, shape, type_, options, imatrix)
    return _summary(wanted, (types[name] for name in wanted), len(tensors))


def found(gguf: "GgufFile", options: Mapping[str, Any], imatrix: bool) -> Fallbacks | None:
    """Those of a finished quant, from its header and the options that it was made with."""
    stored = {tensor.name: tensor.type_name.lower() for tensor in gguf.tensors}
    dims = {tensor.name: tensor.shape for tensor in gguf.tensors}
    wanted = misfits(dims, shape_of(gguf.metadata), options["type"], options, imatrix)
    wanted = {name: kind for name, kind in wanted.items() if stored[name] != kind}
    return _summary(wanted, (stored[name] for name in wanted), len(stored))


def _summary(
    wanted: Mapping[str, str], stored: Iterable[str | None], tensors: int
) -> Fallbacks | None:
    types = Counter(kind or "?" for kind in stored)
    ordered = tuple(sorted(types, key=lambda kind: (-types[kind], kind)))
    block = max(map(block_size, wanted.values()), default=0)
    return Fallbacks(len(wanted), tensors, ordered, block) if wanted else None


def shape_of(metadata: Mapping[str, Any]) -> Shape:
    """What decides a mixture, from a GGUF header; of numbers that differ by layer the largest."""
    family = metadata.get("general.architecture", "llama")

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{family}.{key}") or default
        return max(value) if isinstance(value, list) else value

    heads = number("attention.head_count", 1)
    sharing = heads // (number("attention.head_count_kv", heads) or heads)
    return Shape(number("block_count", 1), sharing, number("expert_count", 0), family)


def sentence(forms: Mapping[str, Fallbacks | None]) -> str:
    """What is said of a model's forms together; empty where there is nothing to say.

    Tensors whose rows are not a multiple of 256 are stored in other types: 12 of 20 in Q2_K (q4_0).
    """
    groups: dict[tuple[int, int], list[str]] = {}
    found = {name: fallbacks for name, fallbacks in forms.items() if fallbacks}
    for name, fallbacks in found.items():
        types = f"{name} ({', '.join(fallbacks.types)})"
        groups.setdefault((fallbacks.count, fallbacks.tensors), []).append(types)
    if not found:
        return ""
    block = max(fallbacks.block for fallbacks in found.values())
    counted = (f"{n} of {total} in {', '.join(names)}" for (n, total), names in groups.items())
    return (
        f"Tensors whose rows are not a multiple of {block} are stored in other types: "
        f"{'; '.join(counted)}."
    )

"""Fallbacks: tensors that llama-quantize stores in another type than the mixture has for them.

Most types pack 256 weights of a row into a block. A row that is not a multiple of that gets a type
with smaller blocks. llama-quantize calls this fallback quantization and tells it only in its log.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lib.formats.mixture import Dims, Shape, block_size, misfits, quant_types


@dataclass(frozen=True)
class Fallbacks:
    """The fallbacks of one quant.

    count: the number of fallbacks. tensors: the number of all tensors of the quant.
    types: the types that the fallbacks are stored in, the most frequent first.
    block: weights in a block of the type that did not fit; if several did not, of the largest.
    """

    count: int
    tensors: int
    types: tuple[str, ...]
    block: int = 256

    def __str__(self) -> str:
        """The rest of a sentence that begins with the quant: "12 of 20 tensors have rows …"."""
        have, are = ("has", "is") if self.count == 1 else ("have", "are")
        return (
            f"{self.count} of {self.tensors} tensors {have} rows that are not a multiple of "
            f"{self.block} and {are} stored as {', '.join(self.types)}"
        )


def planned(
    tensors: Mapping[str, Dims], shape: Shape, type_: str, options: Mapping[str, Any], imatrix: bool
) -> Fallbacks | None:
    """The fallbacks of a quant that is not built yet; None if there are none.

    The arguments are those of `lib.formats.mixture.quant_types`.
    """
    if all(dims[0] % 256 == 0 for dims in tensors.values() if len(dims) > 1):
        return None
    wanted = misfits(tensors, shape, type_, options, imatrix)
    types = quant_types(tensors, shape, type_, options, imatrix)
    return _summary(wanted, (types[name] for name in wanted), len(tensors))


def found(gguf: Any, options: Mapping[str, Any], imatrix: bool) -> Fallbacks | None:
    """The fallbacks of a finished quant; None if there are none.

    gguf: the quant's header, a lib.formats.gguf_file.GgufFile.
    options, imatrix: those of its recipe, as for `quant_types`.
    """
    stored = {tensor.name: tensor.type_name.lower() for tensor in gguf.tensors}
    dims = {tensor.name: tensor.shape for tensor in gguf.tensors}
    wanted = misfits(dims, shape_of(gguf.metadata), options["type"], options, imatrix)
    wanted = {name: kind for name, kind in wanted.items() if stored[name] != kind}
    return _summary(wanted, (stored[name] for name in wanted), len(stored))


def _summary(
    wanted: Mapping[str, str], stored: Iterable[str | None], tensors: int
) -> Fallbacks | None:
    if not wanted:
        return None
    types = Counter(kind or "?" for kind in stored)
    ordered = tuple(sorted(types, key=lambda kind: (-types[kind], kind)))
    return Fallbacks(len(wanted), tensors, ordered, max(map(block_size, wanted.values())))


def shape_of(metadata: Mapping[str, Any]) -> Shape:
    """The Shape of a model, from its GGUF metadata. Of a list by layer, the largest number counts.

    A key that is missing counts as in a dense Llama of one layer.
    """
    family = metadata.get("general.architecture", "llama")

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{family}.{key}") or default
        return max(value) if isinstance(value, list) else value

    heads = number("attention.head_count", 1)
    sharing = heads // (number("attention.head_count_kv", heads) or heads)
    return Shape(number("block_count", 1), sharing, number("expert_count", 0), family)


def sentence(forms: Mapping[str, Fallbacks | None]) -> str:
    """One sentence about the fallbacks of all forms of a model; "" if there are none.

    forms: {form: its fallbacks}. For example:
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

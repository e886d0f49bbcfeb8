"""Which types each tensor of a model can have in a mix, and how large a file of them is.

llama-quantize has rules of its own: it never quantizes norms and the like, stores rows that do not
fit a type's blocks in another type, and needs an importance matrix for the smallest types.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lib.formats.mixture import Dims, Shape, quant_types
from lib.formats.quants import (
    PURE,
    TENSOR_ABORTS_WITHOUT_IMATRIX,
    TENSOR_BITS,
    TENSOR_NEEDS_IMATRIX,
)

DEFAULT = (
    "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0",
)  # fmt: skip
# llama-quantize takes some types for these without an entry in the matrix.
FREER = ("token_embd.weight", "output.weight")
ALIGNMENT = 32
# Bytes that a quant's header may be longer than that of its source: the matrix's file, text and
# chunks, the types.
RESERVE = 4096

Candidates = dict[str, dict[str, int]]
"""{tensor: {type: bytes in the file}}, for the tensors that llama-quantize quantizes."""


def candidates(
    tensors: Mapping[str, Dims],
    shape: Shape,
    types: Iterable[str],
    entries: Collection[str] | None = None,
) -> Candidates:
    """The types that each tensor can have in a mix of `types`.

    tensors: {name: shape, the row's width first}. entries: the tensors for which there is data in
    the importance matrix; None: not known yet, for all but the embeddings and the output.
    """
    found: Candidates = {}
    for kind in types:
        for name, stored in quant_types(tensors, shape, PURE[kind], {"pure": True}, True).items():
            if stored and has_data(name, stored, entries):
                found.setdefault(name, {})[stored] = padded(tensors[name], TENSOR_BITS[stored])
    return found


def has_data(name: str, kind: str, entries: Collection[str] | None) -> bool:
    """Whether a tensor can have a type, given the tensors with data in the importance matrix."""
    free = name in FREER
    known = not free if entries is None else name in entries
    return known or kind not in (TENSOR_ABORTS_WITHOUT_IMATRIX if free else TENSOR_NEEDS_IMATRIX)


def padded(dims: Dims, bits: float) -> int:
    """Bytes of a tensor in a GGUF file. dims: its shape. bits: of a weight."""
    return aligned(round(math.prod(dims) * bits / 8))


def aligned(size: int) -> int:
    """Bytes that `size` bytes of a tensor take in a GGUF file."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def overhead(base: Any, found: Candidates) -> int:
    """Bytes of a mix beside its quantized tensors, at most.

    base: the unquantized file, a lib.formats.gguf_file.GgufFile.
    """
    kept = sum(aligned(t.size) for t in base.tensors if t.name not in found)
    return min(tensor.offset for tensor in base.tensors) + RESERVE + kept


def smallest(found: Candidates) -> int:
    """Bytes of the quantized tensors of the smallest mix."""
    return sum(min(kinds.values()) for kinds in found.values())

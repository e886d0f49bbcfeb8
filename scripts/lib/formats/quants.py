"""The quant types of the pinned llama-quantize, and the tensor types that its overrides accept.

Taken from tools/quantize/quantize.cpp, src/llama-quant.cpp and ggml/src/ggml.c of llama.cpp b10605.
tests/test_quants.py keeps the names in step with the tool's own `--help`.
"""

from dataclasses import dataclass

# {ggml type: its exact bits per weight on disk}, that is bytes of a block * 8 / weights in it.
# --tensor-type and similar flags accept these names, in any case. Types that ggml uses only for
# computing (q8_1, q8_K, i8 …) are left out: llama-quantize accepts their names and then fails.
TENSOR_BITS: dict[str, float] = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0,
    "q1_0": 1.125, "q2_0": 2.25, "q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "q8_0": 8.5,
    "mxfp4": 4.25, "nvfp4": 4.5,
    "q2_k": 2.625, "q3_k": 3.4375, "q4_k": 4.5, "q5_k": 5.5, "q6_k": 6.5625,
    "iq1_s": 1.5625, "iq1_m": 1.75, "iq2_xxs": 2.0625, "iq2_xs": 2.3125, "iq2_s": 2.5625,
    "iq3_xxs": 3.0625, "iq3_s": 3.4375, "iq4_nl": 4.5, "iq4_xs": 4.25,
    "tq1_0": 1.6875, "tq2_0": 2.0625,
}  # fmt: skip

# llama-quantize refuses these types without an imatrix (tensor_requires_imatrix in
# llama-quant.cpp), except for the token embeddings and the output tensor.
TENSOR_NEEDS_IMATRIX = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"})

# ggml aborts if the imatrix has no entry for a tensor of these types
# (ggml_quantize_requires_imatrix). An imatrix never has an entry for the token embeddings, and one
# for the output tensor only with `process_output`.
TENSOR_ABORTS_WITHOUT_IMATRIX = frozenset({"iq1_s", "iq2_xxs", "iq2_xs"})


@dataclass(frozen=True)
class QuantType:
    """A quant type of llama-quantize.

    bpw: bits per weight of a whole file, as a guide; a model's shapes decide the true value. It is
        that of Llama 3.1 8B in llama.cpp's quantize/README.md, else that of the type's blocks.
    tensor: the ggml type of most tensors; None for COPY, which keeps each tensor's type.
    alias_of: the type's main name, if `name` is an alias.
    needs_imatrix: llama-quantize refuses the type without an imatrix.
    """

    name: str
    bpw: float
    tensor: str | None
    alias_of: str | None = None
    needs_imatrix: bool = False
    lossless: bool = False  # a float type or a copy: nothing is quantized


_ALL = [
    QuantType("IQ1_S", 2.0042, "iq1_s", needs_imatrix=True),
    QuantType("IQ1_M", 2.1460, "iq1_m", needs_imatrix=True),
    QuantType("IQ2_XXS", 2.3824, "iq2_xxs", needs_imatrix=True),
    QuantType("IQ2_XS", 2.5882, "iq2_xs", needs_imatrix=True),
    QuantType("IQ2_S", 2.7403, "iq2_xs", needs_imatrix=True),
    QuantType("IQ2_M", 2.9294, "iq2_s", needs_imatrix=True),
    QuantType("IQ3_XXS", 3.2548, "iq3_xxs", needs_imatrix=True),
    # IQ3_XS is a mix with IQ3_XXS tensors, which need one.
    QuantType("IQ3_XS", 3.4977, "iq3_s", needs_imatrix=True),
    QuantType("IQ3_S", 3.6606, "iq3_s"),
    QuantType("IQ3_M", 3.7628, "iq3_s"),
    QuantType("IQ4_XS", 4.4597, "iq4_xs"),
    QuantType("IQ4_NL", 4.6818, "iq4_nl"),
    QuantType("TQ1_0", 1.6875, "tq1_0"),
    QuantType("TQ2_0", 2.0625, "tq2_0"),
    QuantType("Q1_0", 1.125, "q1_0"),
    QuantType("Q2_0", 2.25, "q2_0"),
    QuantType("Q2_K_S", 2.9697, "q2_k", needs_imatrix=True),
    QuantType("Q2_K", 3.1593, "q2_k"),
    QuantType("Q3_K_S", 3.6429, "q3_k"),
    QuantType("Q3_K_M", 3.9960, "q3_k"),
    QuantType("Q3_K", 3.9960, "q3_k", alias_of="Q3_K_M"),
    QuantType("Q3_K_L", 4.2979, "q3_k"),
    QuantType("Q4_0", 4.5, "q4_0"),
    QuantType("Q4_1", 5.0, "q4_1"),
    QuantType("Q4_K_S", 4.6672, "q4_k"),
    QuantType("Q4_K_M", 4.8944, "q4_k"),
    QuantType("Q4_K", 4.8944, "q4_k", alias_of="Q4_K_M"),
    QuantType("MXFP4_MOE", 4.25, "mxfp4"),
    QuantType("Q5_0", 5.5, "q5_0"),
    QuantType("Q5_1", 6.0, "q5_1"),
    QuantType("Q5_K_S", 5.5704, "q5_k"),
    QuantType("Q5_K_M", 5.7036, "q5_k"),
    QuantType("Q5_K", 5.7036, "q5_k", alias_of="Q5_K_M"),
    QuantType("Q6_K", 6.5633, "q6_k"),
    QuantType("Q8_0", 8.5008, "q8_0"),
    QuantType("F16", 16.0, "f16", lossless=True),
    QuantType("BF16", 16.0, "bf16", lossless=True),
    QuantType("F32", 32.0, "f32", lossless=True),
    QuantType("COPY", 16.0, None, lossless=True),
]

QUANT_TYPES: dict[str, QuantType] = {entry.name: entry for entry in _ALL}
# {tensor type: a quant type whose tensors it is}: what llama-quantize is asked for with --pure.
PURE = {entry.tensor: entry.name for entry in reversed(_ALL) if entry.tensor and not entry.lossless}


def canonical(name: str) -> str | None:
    """The name of a quant type in QUANT_TYPES, aliases resolved; None if unknown.

    name: in upper or lower case.
    """
    entry = QUANT_TYPES.get(name.upper())
    return (entry.alias_of or entry.name) if entry else None

"""The type that llama-quantize gives each tensor, which tells a quant's size before it is built.

Follows llama_tensor_get_type in src/llama-quant.cpp of llama.cpp b10605. tests/test_sizes.py
compares it with `llama-quantize --dry-run`. Types are named as in lib/formats/quants.py, tensors
as in GGUF files.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lib.formats.quants import QUANT_TYPES, TENSOR_BITS, canonical

ATTN_V = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
# A tensor with one of these in its name keeps its type.
KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "time_mix_", "attn_rel_b.weight", "position_embd", ".patch_embd",
)  # fmt: skip
# Quantized types with blocks of 32 weights, or as BLOCKS says; and floats. All others have 256.
SMALL_BLOCKS = (
    "f32", "f16", "bf16", "q1_0", "q2_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "nvfp4",
    "iq4_nl",
)  # fmt: skip
# {type of SMALL_BLOCKS: weights in a block}, where that is not 32.
BLOCKS = {"q1_0": 128, "q2_0": 64, "nvfp4": 64}
# {type: its replacement for rows that it does not fit}. For all others it is iq4_nl; for rows that
# are not a multiple of 32 it is f16.
FALLBACK = {
    "q2_0": "q4_0", "q2_k": "q4_0", "q3_k": "q4_0", "tq1_0": "q4_0", "tq2_0": "q4_0",
    "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0",
}  # fmt: skip
TINY = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"}
# {quant: the type of its token embeddings}, where that is not the quant's usual type.
EMBEDDING = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"), "q2_k"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "iq3_s"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "q4_k"),
}


@dataclass(frozen=True)
class Shape:
    """The model's properties that decide the types of its tensors.

    layers: the number of layers. sharing: attention heads that share one key/value head.
    experts: the number of experts in a layer; 0 for a dense model. family: its architecture's name.
    """

    layers: int
    sharing: int = 1
    experts: int = 0
    family: str = "llama"

    @property
    def is_70b(self) -> bool:
        """Whether llama-quantize takes it for a Llama of 70B: 80 layers and shared heads."""
        return self.family == "llama" and self.layers == 80 and self.sharing > 1


Dims = tuple[int, ...]  # in GGUF's order: the row's width first


def quant_types(
    tensors: Mapping[str, Dims], shape: Shape, type_: str, options: Mapping[str, Any], imatrix: bool
) -> dict[str, str | None]:
    """{tensor: type} of a quant; None for a tensor that keeps its type.

    tensors: {name in the GGUF: shape, the row width first}. type_: a name of QUANT_TYPES.
    options: a quant's options, as in the config (`pure`, `tensor_types` …).
    imatrix: whether the quant is made with an imatrix.
    """
    choices = _choices(tensors, shape, type_, options, imatrix)
    return {
        name: _fitting(kind, tensors[name][0]) if kind and adapts else kind
        for name, kind, adapts in choices
    }


def misfits(
    tensors: Mapping[str, Dims], shape: Shape, type_: str, options: Mapping[str, Any], imatrix: bool
) -> dict[str, str]:
    """{tensor: the mixture's type} of the tensors whose rows do not fit that type's blocks.

    llama-quantize stores them in another type (fallback quantization). The arguments are those of
    `quant_types`.
    """
    return {
        name: kind
        for name, kind, adapts in _choices(tensors, shape, type_, options, imatrix)
        if kind and adapts and tensors[name][0] % block_size(kind)
    }


def block_size(kind: str) -> int:
    """The number of weights that a type of TENSOR_BITS packs into one block; 1 for floats."""
    if TENSOR_BITS[kind] >= 16:
        return 1
    return BLOCKS.get(kind, 32 if kind in SMALL_BLOCKS else 256)


def _choices(
    tensors: Mapping[str, Dims], shape: Shape, type_: str, options: Mapping[str, Any], imatrix: bool
) -> Iterator[tuple[str, str | None, bool]]:
    """Yield (tensor, type or None to keep its own, whether the type is replaced if it misfits)."""
    type_ = canonical(type_)
    default = QUANT_TYPES[type_].tensor
    chooser = _Chooser(tensors, shape, type_, imatrix)
    patterns = [entry.rpartition("=")[::2] for entry in options.get("tensor_types", ())]
    for name in sorted(tensors, key=_order):
        dims = tensors[name]
        embedding = name in ("token_embd.weight", "per_layer_token_embd.weight")
        if default is None or not _is_quantized(name, dims, options):
            yield name, None, False
        elif embedding and options.get("token_embedding_type"):
            yield name, options["token_embedding_type"].lower(), False
        elif name == "output.weight" and options.get("output_tensor_type"):
            yield name, options["output_tensor_type"].lower(), False
        elif QUANT_TYPES[type_].lossless:
            yield name, default, False
        else:
            kind = next((kind for pattern, kind in patterns if re.search(pattern, name)), None)
            if kind is None:
                kind = default if options.get("pure") else chooser.choose(name, dims, default)
                if "output.weight" not in tensors and embedding and not options.get("pure"):
                    kind = (options.get("output_tensor_type") or kind).lower()
            yield name, kind.lower(), True


def quant_bytes(
    tensors: Mapping[str, Dims],
    types: Mapping[str, str | None],
    kept_bits: Iterable[tuple[str, float]],
) -> int:
    """Bytes of the data of all tensors of a quant.

    types: as `quant_types` gives them.
    kept_bits: (tensor, bits per weight) of those that keep their type; 32 if one is missing.
    """
    kept = dict(kept_bits)
    total = 0.0
    for name, dims in tensors.items():
        kind = types[name]
        total += math.prod(dims) * (TENSOR_BITS[kind] if kind else kept.get(name, 32.0)) / 8
    return round(total)


def _order(name: str) -> tuple:
    found = re.match(r"blk\.(\d+)\.", name)
    return (int(found[1]) if found else -1, name)


def _is_quantized(name: str, dims: Dims, options: Mapping[str, Any]) -> bool:
    if len(dims) < 2 or not name.endswith("weight") or any(part in name for part in KEPT):
        return False
    return not (name == "output.weight" and options.get("leave_output_tensor"))


def _fitting(kind: str, width: int) -> str:
    """`kind`, or its replacement if rows of `width` weights do not fit its blocks."""
    if width % block_size(kind):
        kind = FALLBACK.get(kind, "iq4_nl")
        if width % 32:
            return "f16"
    return kind


class _Chooser:
    """A mixture: it gives more bits to tensors and layers that matter more.

    `choose` counts the attention values, so it must be asked for tensors in the order of layers.
    """

    def __init__(self, tensors: Mapping[str, Dims], shape: Shape, type_: str, imatrix: bool):
        self.shape, self.type, self.imatrix = shape, type_, imatrix
        self.tied = "output.weight" not in tensors
        self.values = sum(name.endswith(ATTN_V) for name in tensors)
        self.value = 0  # how many of these `choose` was asked for

    def choose(self, name: str, dims: Dims, kind: str) -> str:
        type_, shape = self.type, self.shape
        layer = int(found[1]) if (found := re.match(r"blk\.(\d+)\.", name)) else 0
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return self._output(dims, kind)
        if type_ == "MXFP4_MOE":
            return "mxfp4" if len(dims) > 2 and dims[2] > 1 else "q8_0"
        if name in ("token_embd.weight", "per_layer_token_embd.weight"):
            return EMBEDDING.get(type_, kind)
        if name.endswith(ATTN_V):
            return self._value(kind)
        if name.endswith("attn_k.weight") or name.endswith("attn_q.weight"):
            return self._key(name, kind)
        if "ffn_down" in name:
            return self._down(layer, kind)
        if name.endswith("attn_output.weight"):
            return self._attention_output(kind)
        if ("ffn_gate" in name or "ffn_up" in name) and type_ == "IQ3_XS":
            layers = shape.layers
            return "iq3_xxs" if layers // 8 <= layer < 7 * layers // 8 else kind
        return kind

    def _output(self, dims: Dims, kind: str) -> str:
        falcon = self.shape.family == "falcon"
        if self.type == "MXFP4_MOE" or falcon or dims[0] % block_size(kind):
            return "q8_0"
        if self.type in TINY | {"IQ3_XXS"}:
            return "q5_k"
        return "q6_k" if kind != "q8_0" else kind

    def _value(self, kind: str) -> str:
        type_, shape, index = self.type, self.shape, self.value
        self.value += 1
        shared = shape.sharing >= 4
        if type_ in TINY:
            if shared or shape.experts >= 4:
                return "q4_k"
            return "iq3_s" if type_ in ("IQ2_S", "IQ2_M") else "q2_k"
        if type_ == "Q2_K":
            kind = "q4_k" if shared else "q3_k"
        elif type_ in ("Q2_K_S", "IQ3_XS", "IQ3_S") and shared:
            kind = "q4_k"
        elif type_ == "IQ3_XXS":
            kind = "q4_k" if shared else "iq3_xxs" if self.imatrix else "iq3_s"
        elif type_ == "IQ3_M":
            kind = "q4_k"
        elif type_ == "Q3_K_M":
            kind = "q5_k" if index < 2 else "q4_k"
        elif type_ == "Q3_K_L" or (type_ in ("IQ4_NL", "IQ4_XS") and shared):
            kind = "q5_k"
        elif type_ in ("Q4_K_M", "Q5_K_M") and _matters(index, self.values):
            kind = "q6_k"
        elif type_ == "Q4_K_S" and index < 4:
            kind = "q5_k"
        if shape.is_70b and kind in ("q3_k", "q4_k"):
            kind = "q5_k"
        return "q8_0" if shape.experts == 8 else kind

    def _key(self, name: str, kind: str) -> str:
        if name.endswith("attn_k.weight") and self.shape.experts == 8:
            return "q4_k" if self.type in TINY else "q8_0"
        return {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}.get(self.type, kind)

    def _down(self, layer: int, kind: str) -> str:
        type_, layers = self.type, self.shape.layers
        falcon = self.shape.family == "falcon"
        first, matters = layer < layers // 8, _matters(layer, layers)
        if type_ in TINY:
            return ("iq3_s" if type_ in ("IQ2_S", "IQ2_M") else "q2_k") if first else kind
        if type_ == "Q2_K":
            return "q3_k"
        if type_ == "Q3_K_M":
            return "q5_k" if layer < layers // 16 else "q3_k" if falcon and not matters else "q4_k"
        if type_ == "Q3_K_L":
            return "q4_k" if falcon else "q5_k"
        if type_ == "IQ3_XXS" and not self.imatrix:
            return "q4_k" if first else "q3_k"
        if type_ == "Q4_K_M" and falcon:
            return "q6_k" if layer < layers // 16 else "q5_k" if matters else kind
        if type_ in ("Q4_K_M", "Q5_K_M") and matters:
            return "q6_k"
        eight = self.shape.experts == 8
        if (first and type_ in ("Q2_K_S", "IQ3_M")) or (matters and eight and type_ == "IQ3_M"):
            return "q4_k"
        if first and (
            (type_ in ("IQ4_NL", "IQ4_XS") and not self.imatrix)
            or (type_ == "Q4_K_S" and not falcon)
        ):
            return "q5_k"
        if first and self.imatrix and type_ in ("Q4_0", "Q5_0"):
            return {"Q4_0": "q4_1", "Q5_0": "q5_1"}[type_]
        return kind

    def _attention_output(self, kind: str) -> str:
        type_ = self.type
        if self.shape.family == "falcon":
            return "q4_k" if type_ == "Q3_K_L" else kind
        if self.shape.experts == 8:
            larger = {
                "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M",
                "IQ3_S", "IQ3_M", "IQ4_XS",
            }  # fmt: skip
            return "q5_k" if type_ in larger | TINY else kind
        kinds = {
            "Q2_K": "q3_k", "IQ3_XXS": "iq3_s", "Q3_K_M": "q4_k", "Q3_K_L": "q5_k", "IQ3_M": "q4_k",
            "IQ1_S": "iq2_xxs", "IQ1_M": "iq2_xxs", "IQ2_S": "iq3_s", "IQ2_M": "iq3_s",
        }  # fmt: skip
        return kinds.get(type_, kind)


def _matters(layer: int, layers: int) -> bool:
    """Whether a layer gets more bits (use_more_bits of llama-quant.cpp).

    These are the first and the last eighth of the layers, and every third layer between.
    """
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2

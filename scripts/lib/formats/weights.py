"""The tensors of a model directory, by name and shape, and their names and shapes in a GGUF."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.formats import memory
from lib.formats.mixture import Dims, Shape
from lib.formats.model_files import model_files
from lib.formats.safetensors import read_header
from lib.formats.soundness import EXPERT_COUNTS, document

# {mergekit's dtype or out_dtype: bytes of a weight}
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
# Tensors that belong to a tower or a projector, as the text model's converter skips them (b10605,
# conversion/base.py, TextModel.filter_tensors).
TOWER = re.compile(
    r"^(mlp|vit\.|vpm\.|siglip2\.|conformer\.|merger\.|resampler\.|sound_|speech_embeddings\.)"
    r"|visual\.|vision[._]|audio[._]|talker\.|token2wav\.|code2wav\.|projector\.|pre_mm_projector"
    r"|image_newline|view_seperator|patch_embed|patch_merge|model\.connector\."
)


@dataclass(frozen=True)
class Weights:
    """The tensors of a model directory, and what else decides the sizes of its forms.

    tensors: {Hugging Face name: shape, the outermost dimension first}.
    shape: the properties that decide the types of a quant's tensors.
    bytes_per_weight: the mean over all weights, as stored.
    tokenizer: bytes that the tokenizer takes in a GGUF header, estimated.
    side_files: bytes of the files beside the weights (config, tokenizer and the like).
    context: what decides the memory of a context; None if that is not known for sure.
    """

    tensors: dict[str, tuple[int, ...]]
    shape: Shape
    bytes_per_weight: float = 2
    tokenizer: int = 0
    side_files: int = 0
    context: memory.Shape | None = None

    @property
    def parameters(self) -> int:
        """The number of weights of all tensors together."""
        return sum(map(math.prod, self.tensors.values()))


def is_tower(name: str) -> bool:
    """Whether a tensor of a model directory belongs to a multimodal model's tower or projector."""
    return bool(TOWER.search(name))


def header_bytes(weights: Weights, tensors: int) -> int:
    """Bytes of a GGUF header that lists `tensors` tensors, estimated."""
    return 2_000 + weights.tokenizer + 70 * tensors


def read_weights(directory: Path) -> Weights:
    """Read a model directory's tensors, from its config.json and the headers of its safetensors.

    Pickled weights are not read: they add no tensors.
    Raises UserError if it is not a model or a file is cut off; and OSError.
    """
    config = document(directory / "config.json")
    config = config.get("text_config") or config
    headers = {}
    for path in model_files(directory, allow_pickle=True):
        if path.suffix == ".safetensors":
            headers |= read_header(path).tensors
    tensors = {name: header.shape for name, header in headers.items()}
    size = sum(header.end - header.first for header in headers.values())
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    layers = _count(config, "num_hidden_layers") or _count(config, "n_layer") or 1
    heads = _count(config, "num_attention_heads") or 1
    experts = max(_count(config, key) for key in EXPERT_COUNTS)
    sharing = heads // (_count(config, "num_key_value_heads") or heads)
    shape = Shape(layers, sharing, experts, str(config.get("model_type") or "llama"))
    parameters = sum(map(math.prod, tensors.values())) or 1
    beside = [f for f in directory.iterdir() if f.suffix in (".json", ".model", ".jinja", ".txt")]
    side = sum(file.stat().st_size for file in beside if file.is_file())
    tokenizer = _tokenizer_bytes(directory, config)
    # Layers that see a window, or keep a state, take less than a config tells.
    plain = not any(config.get(key) for key in ("sliding_window", "layer_types"))
    context = memory.shape_of(directory) if plain else None
    return Weights(tensors, shape, size / parameters, tokenizer, side, context)


def _count(config: dict[str, Any], key: str) -> int:
    """A number of a config.json; 0 if it has none, or a list with one for each layer."""
    found = config.get(key)
    return int(found) if isinstance(found, int | float) else 0


def llama_weights(
    layers: int, hidden: int, ffn: int, vocabulary: int, heads: int, kv_heads: int
) -> Weights:
    """The Weights of a Llama that does not exist yet, with 16 bits per weight.

    hidden, ffn: the widths of a layer's states and of its feed-forward part.
    vocabulary: the number of tokens. heads, kv_heads: attention heads, and key/value heads.
    """
    tensors = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    shared = hidden // heads * kv_heads
    in_a_layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (shared, hidden),
        "self_attn.v_proj": (shared, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    tensors |= {
        f"model.layers.{layer}.{name}.weight": dims
        for layer in range(layers)
        for name, dims in in_a_layer.items()
    }
    return Weights(tensors, Shape(layers, heads // kv_heads), 2, 22 * vocabulary, 90 * vocabulary)


def gguf_tensors(weights: Weights) -> Iterator[tuple[str, Dims]]:
    """Yield (name in a GGUF, shape with the row width first) of all tensors of the text model.

    In a GGUF, the experts of a layer are one tensor.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    families = {
        name.replace("-", "").replace("_", ""): arch for arch, name in MODEL_ARCH_NAMES.items()
    }
    plain = weights.shape.family.replace("-", "").replace("_", "").removesuffix("text")
    names = get_tensor_name_map(families.get(plain, MODEL_ARCH.LLAMA), weights.shape.layers)
    experts: dict[str, list[tuple[int, ...]]] = {}
    for name, dims in weights.tensors.items():
        if is_tower(name):
            continue
        name = name.replace("language_model.", "").replace("text_model.", "")
        joined = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        if joined != name:
            experts.setdefault(joined, []).append(dims)
        else:
            yield names.get_name(name, try_suffixes=(".weight", ".bias")) or name, dims[::-1]
    for name, parts in experts.items():
        found = names.get_name(name, try_suffixes=(".weight",))
        found = found or names.get_name(
            re.sub(r"block_sparse_moe", "feed_forward", name.removeprefix("model.")), (".weight",)
        )
        yield found or name, (*parts[0][::-1], len(parts))


def stacked(
    slices: list[dict[str, Any]], tensors: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) of all tensors of a merge that stacks layers of models like one model.

    slices: as in the merge. tensors: {name: shape} of the one model.
    A layer that the model does not have gets the shapes of its first layer.
    """
    layered = re.compile(r"(.*\blayers\.)(\d+)(\..*)")
    by_layer: dict[int, list[tuple[str, str, tuple[int, ...]]]] = {}
    for name, dims in tensors.items():
        if found := layered.fullmatch(name):
            by_layer.setdefault(int(found[2]), []).append((found[1], found[3], dims))
        else:
            yield name, dims
    number = 0
    for first, last in layer_ranges(slices):
        for layer in range(first, last):
            for before, after, dims in by_layer.get(layer) or by_layer.get(0) or []:
                yield f"{before}{number}{after}", dims
            number += 1


def layer_ranges(slices: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(first layer, one after the last) of each slice of a merge, as its first source gives it."""
    return [tuple(part["sources"][0]["layer_range"]) for part in slices]


def is_matrix(name: str, dims: Dims) -> bool:
    """Whether the converter keeps a tensor of a GGUF in 16 bits. All others become F32."""
    return len(dims) > 1 and not name.endswith("_norm.weight") and "ffn_gate_inp" not in name


def _tokenizer_bytes(directory: Path, config: dict[str, Any]) -> int:
    """Bytes of the tokenizer in a GGUF header, estimated.

    Each token takes its text and length, its type, and its score or merge.
    """
    vocabulary = _count(config, "vocab_size") or 32_000
    model = directory / "tokenizer.model"
    if model.is_file():
        return model.stat().st_size + 8 * vocabulary
    return 37 * vocabulary  # BPE: 8 + 7 bytes of text, 4 of type, and a merge of about 18

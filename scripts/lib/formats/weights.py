"""What a model directory holds: its tensors by name and shape, and a GGUF's names for them."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.formats.mixture import Dims, Shape
from lib.formats.model_files import model_files
from lib.formats.safetensors import read_header

# Of a weight, by the names that mergekit's dtype and out_dtype have.
DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Weights:
    """A model directory's tensors by their Hugging Face names, and what else decides sizes.

    tensors: their shapes, outermost dimension first.
    tokenizer: bytes that the tokenizer takes in a GGUF header.
    side_files: bytes of the config, the tokenizer and the like beside the weights.
    """

    tensors: dict[str, tuple[int, ...]]
    shape: Shape
    bytes_per_weight: float = 2
    tokenizer: int = 0
    side_files: int = 0

    @property
    def parameters(self) -> int:
        """How many weights the tensors have together."""
        return sum(map(math.prod, self.tensors.values()))


def header_bytes(weights: Weights, tensors: int) -> int:
    """Bytes of a GGUF header: fields, the tokenizer, and where each of so many tensors lies."""
    return 2_000 + weights.tokenizer + 70 * tensors


def read_weights(directory: Path) -> Weights:
    """What a model directory holds, from its config and the headers of its safetensors.

    Raises UserError (a file that is cut off, no model) and OSError.
    """
    config = json.loads((directory / "config.json").read_text())
    config = config.get("text_config") or config
    tensors, sizes = {}, 0
    files = model_files(directory, allow_pickle=True)
    for path in (file for file in files if file.suffix == ".safetensors"):
        for name, tensor in read_header(path).tensors.items():
            tensors[name] = tensor.shape
            sizes += tensor.end - tensor.first
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 1
    heads = config.get("num_attention_heads") or 1
    experts = (
        config.get("num_local_experts")
        or config.get("num_experts")
        or config.get("n_routed_experts")
        or 0
    )
    sharing = heads // (config.get("num_key_value_heads") or heads)
    shape = Shape(layers, sharing, experts, str(config.get("model_type") or "llama"))
    parameters = sum(map(math.prod, tensors.values())) or 1
    side = sum(
        f.stat().st_size
        for f in directory.iterdir()
        if f.suffix in (".json", ".model", ".jinja", ".txt")
    )
    return Weights(tensors, shape, sizes / parameters, _tokenizer_bytes(directory, config), side)


def llama_weights(
    layers: int, hidden: int, ffn: int, vocabulary: int, heads: int, kv_heads: int
) -> Weights:
    """A Llama of these sizes, in 16 bits, that is not there yet."""
    tensors = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
    }
    tensors["model.norm.weight"] = (hidden,)
    shared = hidden // heads * kv_heads
    for layer in range(layers):
        rows = {"q_proj": hidden, "k_proj": shared, "v_proj": shared, "o_proj": hidden}
        tensors |= {
            f"model.layers.{layer}.self_attn.{name}.weight": (n, hidden) for name, n in rows.items()
        }
        tensors |= {
            f"model.layers.{layer}.mlp.{name}.weight": (ffn, hidden)
            for name in ("gate_proj", "up_proj")
        }
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"] = (hidden, ffn)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = (hidden,)
    return Weights(tensors, Shape(layers, heads // kv_heads), 2, 22 * vocabulary, 90 * vocabulary)


def gguf_tensors(weights: Weights) -> Iterator[tuple[str, Dims]]:
    """(GGUF's name, shape with the row's width first); the experts of a layer are one tensor."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    families = {
        name.replace("-", "").replace("_", ""): arch for arch, name in MODEL_ARCH_NAMES.items()
    }
    plain = weights.shape.family.replace("-", "").replace("_", "").removesuffix("text")
    names = get_tensor_name_map(families.get(plain, MODEL_ARCH.LLAMA), weights.shape.layers)
    experts: dict[str, list[tuple[int, ...]]] = {}
    for name, dims in weights.tensors.items():
        name = name.replace("language_model.", "")
        joined = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        if joined != name:
            experts.setdefault(joined, []).append(dims)
            continue
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
    """(name, shape) of the tensors of a merge's `slices`, stacked from the tensors of one model.

    A layer that the model does not have is taken to be like its first.
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
    """The layers of each slice of a merge, as (first, one after the last)."""
    return [tuple(part["sources"][0]["layer_range"]) for part in slices]


def is_matrix(name: str, dims: Dims) -> bool:
    """Whether the converter leaves a tensor, by its GGUF name, in 16 bits; others become F32."""
    return len(dims) > 1 and not name.endswith("_norm.weight") and "ffn_gate_inp" not in name


def _tokenizer_bytes(directory: Path, config: dict[str, Any]) -> int:
    """Bytes of the tokenizer in a GGUF header.

    For each token its text and length, its type, and its score or merge.
    """
    vocabulary = config.get("vocab_size") or 32_000
    model = directory / "tokenizer.model"
    if model.is_file():
        return model.stat().st_size + 8 * vocabulary
    return 37 * vocabulary  # BPE: 8 + 7 bytes of text, 4 of type, and a merge of about 18

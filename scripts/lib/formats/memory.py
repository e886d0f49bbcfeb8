"""How much memory a model takes beside its weights: the cache of a context, and buffers.

The sizes are those that llama.cpp allocates (b10605: src/llama-kv-cache*.cpp, src/llama-hparams.cpp
and src/models/ for the layers of each architecture). tests/test_memory.py compares them with what
it says when it loads models of real shapes.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

# The contexts for which reports and cards give the memory, in tokens.
CONTEXTS = (4096, 16384, 32768, 131072)
# Tokens that llama.cpp computes together (--ubatch-size), and what it rounds a cache up to.
BATCH, ROUND = 512, 256
GIB = 2**30
# {architecture: n}: every n-th layer sees all of the context, the others only a window of it. A
# file that says it itself goes first. Of an architecture that is not here all layers count as
# seeing all: more than it takes, never less.
WINDOWED = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "llama4": 4}
WINDOWS = {"gemma2": 4096, "llama4": 8192}  # where the file does not say it
# {architecture: n}: every n-th layer has attention, the others a state of a fixed size. Others list
# their layers: those with a state have no key-value heads.
HYBRID = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}
LISTED = {"mamba", "mamba2", "jamba", "granitehybrid", "nemotron_h", "nemotron_h_moe", "plamo2"}
LISTED |= {"lfm2", "lfm2moe"}
# What the keys of a state begin with. The state of an architecture that is not above is not known.
STATES = ("ssm.", "shortconv.", "wkv.", "kda.", "attention.recurrent_layers")


class Shape(NamedTuple):
    """What decides the memory of a context.

    full, windowed: values that a token has in the caches of all layers that see the whole context,
    and of those that see a window. window: its tokens. state: values of the layers without a cache.
    width: of a layer's input. vocabulary: its words. trained: the longest context, in tokens.
    """

    full: int
    windowed: int
    window: int
    state: int
    width: int
    vocabulary: int
    trained: int | None

    def cache(self, context: int, value_bytes: float = 2) -> int:
        """Bytes of the cache of `context` tokens. value_bytes: of a value; 2 is f16."""
        cells = _rounded(context)
        in_window = min(cells, _rounded(self.window + BATCH))
        values = self.full * cells + self.windowed * in_window
        return round(values * value_bytes) + self.state * 4

    def buffers(self, context: int) -> int:
        """Bytes for computing a batch: at most what its logits, or its attention, take."""
        logits = 4 * (self.vocabulary + 2 * self.width)
        attention = 64 * self.width + 2 * context
        return BATCH * max(logits, attention)

    def beside_weights(self, context: int, value_bytes: float = 2) -> int:
        """Bytes that a context of so many tokens takes beside the weights."""
        return self.cache(context, value_bytes) + self.buffers(context)


def shape_of(path: Path) -> Shape | None:
    """The shape of a model: a GGUF file, or a directory with config.json.

    Engines of directories keep the whole context for every layer. None if the file does not say
    its shape, or not in a way that is known here. Raises UserError for a broken GGUF.
    """
    config = path / "config.json"
    try:
        if config.is_file():
            return _of_config(json.loads(config.read_text()))
        if path.suffix != ".gguf":
            return None
        from lib.formats.gguf_file import read_gguf  # takes 0.08 s, which no plan needs

        return _of_gguf(read_gguf(path).metadata)
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        return None


def _of_config(config: dict[str, Any]) -> Shape:
    config = config.get("text_config") or config
    width, heads = config["hidden_size"], config["num_attention_heads"]
    a_head = config.get("head_dim") or width // heads
    values = 2 * a_head * (config.get("num_key_value_heads") or heads)
    full = values * config["num_hidden_layers"]
    trained = config.get("max_position_embeddings")
    return Shape(full, 0, 0, 0, width, config["vocab_size"], trained)


def _of_gguf(metadata: dict[str, Any]) -> Shape | None:
    architecture = metadata["general.architecture"]
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    with_state = any(key.startswith(STATES) for key in own)
    if with_state and architecture not in HYBRID.keys() | LISTED:
        return None
    # The last layers may only guess further tokens ahead.
    layers = own["block_count"] - own.get("nextn_predict_layers", 0)
    words = own.get("vocab_size") or len(metadata["tokenizer.ggml.tokens"])
    window = own.get("attention.sliding_window") or WINDOWS.get(architecture, 0)
    every = own.get("full_attention_interval", HYBRID.get(architecture, 1))
    listed = own.get("attention.recurrent_layers")
    full = windowed = recurrent = 0
    for layer in range(layers):
        heads = _of_layer(layer, own.get("attention.head_count_kv", own["attention.head_count"]))
        if not heads or (_of_layer(layer, listed) if listed else (layer + 1) % every):
            recurrent += 1
        elif window and _in_window(layer, architecture, own):
            windowed += heads * _values(own, "_swa")
        else:
            full += heads * _values(own, "")
    return Shape(
        full,
        windowed,
        window,
        recurrent * _state(own),
        own["embedding_length"],
        words,
        own.get("context_length"),
    )


def _values(own: dict[str, Any], kind: str) -> int:
    """The values of a token in the cache of a layer, for each of its heads.

    kind: "" or "_swa", for layers that see a window, where these differ.
    """
    a_head = own["embedding_length"] // (_of_layer(0, own["attention.head_count"]) or 1)
    keys, values = (
        own.get(f"attention.{what}_length{kind}", own.get(f"attention.{what}_length", a_head))
        for what in ("key", "value")
    )
    # Multi-head latent attention keeps its values within the keys.
    return keys if "attention.key_length_mla" in own else keys + values


def _of_layer(layer: int, value: Any) -> Any:
    """A key's value for a layer; keys have one value for all layers, or one each."""
    return value[layer] if isinstance(value, list | tuple) else value


def _in_window(layer: int, architecture: str, own: dict[str, Any]) -> bool:
    """Whether a layer sees only a window of the context."""
    pattern = own.get("attention.sliding_window_pattern", WINDOWED.get(architecture, 1))
    if isinstance(pattern, list | tuple):
        return bool(pattern[layer])
    return layer % pattern < pattern - 1


def _state(own: dict[str, Any]) -> int:
    """The values of the state of a layer that keeps no cache: Mamba's, or a short convolution's."""
    if "shortconv.l_cache" in own:
        return own["embedding_length"] * (own["shortconv.l_cache"] - 1)
    inner, size = own.get("ssm.inner_size", 0), own.get("ssm.state_size", 0)
    past = max(own.get("ssm.conv_kernel", 1) - 1, 0)
    return past * (inner + 2 * own.get("ssm.group_count", 0) * size) + size * inner


def room(memory: float) -> int:
    """Bytes that a model may take of `memory` GB (of 2**30 bytes, as memory is sold).

    One GB stays free for the driver, the desktop and the like.
    """
    return round(memory * GIB) - GIB


def _rounded(cells: int) -> int:
    return -(-cells // ROUND) * ROUND

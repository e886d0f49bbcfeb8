"""Memory that is predicted for a context against what llama.cpp allocates for it.

llama.cpp says it before it loads a model, so the models are files of real shapes with a hole in
place of the weights.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from lib.formats.memory import CONTEXTS, shape_of
from sparse_gguf import write_hole

MIB = 2**20
Q8, F32 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32


def common(layers, width, heads, kv_heads, a_head, vocabulary) -> dict:
    """What the metadata of all architectures has."""
    return {
        "block_count": layers,
        "context_length": 131072,
        "embedding_length": width,
        "feed_forward_length": 4 * width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": a_head,
        "attention.value_length": a_head,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": vocabulary,
    }


def ends(keys: dict, tied: bool = False, norm: str = "output_norm") -> dict:
    width, words = keys["embedding_length"], keys["vocab_size"]
    output = {} if tied else {"output": (words, width)}
    return {"token_embd": (words, width), norm: (width,), **output}


def mlp(keys: dict) -> dict:
    width, inner = keys["embedding_length"], keys["feed_forward_length"]
    return {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}


def attention(keys: dict, normed: bool = False) -> dict:
    width, a_head = keys["embedding_length"], keys.get("attention.key_length", 64)
    queries, heads = keys["attention.head_count"] * a_head, keys["attention.head_count_kv"]
    values = (max(heads) if isinstance(heads, list) else heads) * a_head
    normed = {"attn_q_norm": (a_head,), "attn_k_norm": (a_head,)} if normed else {}
    return {
        **normed,
        "attn_q": (queries, width),
        "attn_k": (values, width),
        "attn_v": (values, width),
        "attn_output": (width, queries),
    }


def norms(keys: dict, *names: str) -> dict:
    return dict.fromkeys(names, (keys["embedding_length"],))


def llama() -> tuple[str, dict, dict]:
    """Llama 3.1 8B."""
    keys = common(32, 4096, 32, 8, 128, 128256) | {"feed_forward_length": 14336}
    layer = norms(keys, "attn_norm", "ffn_norm") | attention(keys) | mlp(keys)
    return "llama", keys, ends(keys) | layers(32, lambda _: layer)


def gemma3() -> tuple[str, dict, dict]:
    """Gemma 3 27B: five of six layers see 1,024 tokens."""
    keys = common(62, 5376, 32, 16, 128, 262208) | {"attention.sliding_window": 1024}
    names = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
    layer = norms(keys, *names) | attention(keys, normed=True) | mlp(keys)
    return "gemma3", keys, ends(keys, tied=True) | layers(62, lambda _: layer)


def deepseek2() -> tuple[str, dict, dict]:
    """DeepSeek V2 Lite without its experts: multi-head latent attention."""
    keys = common(27, 2048, 16, 1, 576, 102400) | {
        "feed_forward_length": 10944,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64,
        "leading_dense_block_count": 27,
        "expert_count": 64,
        "expert_used_count": 6,
        "expert_feed_forward_length": 1408,
        "expert_shared_count": 2,
        "expert_weights_scale": 1.0,
    }
    layer = norms(keys, "attn_norm", "ffn_norm") | mlp(keys)
    layer |= {"attn_q": (3072, 2048), "attn_kv_a_mqa": (576, 2048), "attn_kv_a_norm": (512,)}
    layer |= {"attn_k_b": (16, 512, 128), "attn_v_b": (16, 128, 512), "attn_output": (2048, 2048)}
    return "deepseek2", keys, ends(keys) | layers(27, lambda _: layer)


def qwen35() -> tuple[str, dict, dict]:
    """Qwen 3.5 27B: every fourth layer has attention, the others a state."""
    keys = common(64, 5120, 24, 4, 256, 248320) | {
        "feed_forward_length": 17408,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 6144,
        "ssm.state_size": 128,
        "ssm.time_step_rank": 48,
        "ssm.group_count": 16,
        "rope.dimension_sections": [11, 11, 10, 0],
        "rope.dimension_count": 64,
    }
    both = norms(keys, "attn_norm", "post_attention_norm") | mlp(keys)
    seeing = attention(keys, normed=True) | {"attn_q": (12288, 5120)}
    state = {
        "attn_qkv": (10240, 5120),
        "attn_gate": (6144, 5120),
        "ssm_conv1d": (10240, 4),
        "ssm_dt.bias": (48,),
        "ssm_a.": (48,),
        "ssm_beta": (48, 5120),
        "ssm_alpha": (48, 5120),
        "ssm_norm": (128,),
        "ssm_out": (5120, 6144),
    }
    found = layers(64, lambda layer: both | (state if (layer + 1) % 4 else seeing))
    return "qwen35", keys, ends(keys) | found


def lfm2() -> tuple[str, dict, dict]:
    """LFM2 1.2B: six of 16 layers have attention, the others short convolutions."""
    heads = [8 if layer in (2, 5, 8, 10, 12, 14) else 0 for layer in range(16)]
    keys = common(16, 2048, 32, heads, 64, 65536) | {"shortconv.l_cache": 3}
    both = norms(keys, "attn_norm", "ffn_norm") | mlp(keys)
    convolution = {
        "shortconv.conv": (2048, 3),
        "shortconv.in_proj": (6144, 2048),
        "shortconv.out_proj": (2048, 2048),
    }
    seeing = attention(keys, normed=True)
    found = layers(16, lambda layer: both | (seeing if heads[layer] else convolution))
    return "lfm2", keys, ends(keys, tied=True, norm="token_embd_norm") | found


def layers(count: int, of) -> dict:
    """{name: shape} of `count` layers. of(layer) is that of one."""
    return {f"blk.{i}.{name}": shape for i in range(count) for name, shape in of(i).items()}


def write(path: Path, architecture: str, keys: dict, tensors: dict) -> None:
    """Write a GGUF file of Q8_0 with a hole for its weights. keys: without the architecture."""
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model("none")
    add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for key, value in keys.items():
        add[type(value)](f"{architecture}.{key}", value)
    named = {
        name.rstrip(".") if name.endswith((".", ".bias")) else f"{name}.weight": (
            shape,
            F32 if len(shape) == 1 or shape[-1] % 32 else Q8,
        )
        for name, shape in tensors.items()
    }
    write_hole(writer, path, named)


def allocated(llama_bin: Path, model: Path, context: int) -> tuple[float, int]:
    """The MiB of the cache, and of all, that llama.cpp says it allocates for a context."""
    command = [llama_bin / "llama-completion", "--model", model, "--ctx-size", str(context)]
    command += ["--prompt", "x", "--predict", "1", "--no-repack", "--verbosity", "5"]
    told = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    cache = 0.0
    try:
        for line in told.stdout:
            text = line.decode(errors="replace")
            if found := re.search(r"(?:kv_cache|recurrent): size = +([\d.]+) MiB", text):
                cache += float(found[1])
            # It says so before it loads anything, which would need the memory.
            if found := re.search(r"- Host +\| +(\d+) =", text):
                return cache, int(found[1])
    finally:
        told.kill()
        told.wait()
        told.stdout.close()
    raise AssertionError(f"llama.cpp does not say what it allocates for {model.name}")


@pytest.mark.parametrize("model", [llama, gemma3, deepseek2, qwen35, lfm2])
def test_memory_of_real_shapes_is_what_llama_cpp_allocates(model, llama_bin, tmp_path):
    path = tmp_path / f"{model.__name__}.gguf"
    write(path, *model())
    shape = shape_of(path)
    assert shape.trained == 131072
    for context in CONTEXTS:
        cache, whole = allocated(llama_bin, path, context)
        assert shape.cache(context) / MIB == pytest.approx(cache, abs=0.3)
        needed = path.stat().st_size + shape.beside_weights(context)
        assert needed / MIB == pytest.approx(whole, rel=0.01)


def test_a_directory_is_read_like_a_gguf(tmp_path):
    """Its engines keep the whole context for every layer, so a window saves nothing."""
    text = {"hidden_size": 2560, "num_hidden_layers": 34, "num_attention_heads": 8}
    text |= {"head_dim": 256, "num_key_value_heads": 4, "vocab_size": 262208, "sliding_window": 9}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    assert shape_of(tmp_path).cache(4096) == 34 * 4 * (256 + 256) * 2 * 4096


def test_what_is_not_known_is_not_guessed(tmp_path):
    """Falcon-H1's layers have attention and a state; it is not among the architectures above."""
    _, keys, tensors = llama()
    write(tmp_path / "h1.gguf", "falcon-h1", keys | {"ssm.state_size": 256}, tensors)
    assert shape_of(tmp_path / "h1.gguf") is None
    (tmp_path / "half.bin").write_bytes(b"x")
    assert shape_of(tmp_path / "half.bin") is None
    (tmp_path / "config.json").write_text("{}")
    assert shape_of(tmp_path) is None

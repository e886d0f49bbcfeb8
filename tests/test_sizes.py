"""Predicted sizes against the tools' own: a build that is said to fit the disk must fit it."""

import re
import subprocess
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from lib.formats.base_logits import base_logits_bytes
from lib.formats.divergence import scored
from lib.formats.fallbacks import planned
from lib.formats.mixture import Shape, quant_bytes, quant_types
from lib.formats.quants import QUANT_TYPES
from lib.formats.weights import Weights, gguf_tensors, llama_weights
from sparse_gguf import write_hole

LLAMA_1B = {
    "layers": 16,
    "hidden": 2048,
    "ffn": 8192,
    "vocabulary": 128256,
    "heads": 32,
    "kv_heads": 8,
}
LLAMA_8B = {
    "layers": 32,
    "hidden": 4096,
    "ffn": 14336,
    "vocabulary": 128256,
    "heads": 32,
    "kv_heads": 8,
}
LLAMA_70B = {
    "layers": 80,
    "hidden": 8192,
    "ffn": 28672,
    "vocabulary": 128256,
    "heads": 64,
    "kv_heads": 8,
}
ODD = {"layers": 6, "hidden": 896, "ffn": 4864, "vocabulary": 32000, "heads": 14, "kv_heads": 2}


def sparse_gguf(path: Path, weights: Weights, sizes: dict, tied: bool = False) -> dict:
    """Write a BF16 GGUF file of a header and a hole; the shapes of its tensors."""
    tensors = dict(gguf_tensors(weights))
    if tied:
        del tensors["output.weight"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(sizes["layers"])
    writer.add_context_length(2048)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_feed_forward_length(sizes["ffn"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(sizes["vocabulary"])
    writer.add_tokenizer_model("no_vocab")
    if weights.shape.experts:
        writer.add_expert_count(weights.shape.experts)
        writer.add_expert_used_count(2)
    bf16, f32 = GGMLQuantizationType.BF16, GGMLQuantizationType.F32
    kinds = {
        name: (dims[::-1], bf16 if len(dims) > 1 and "gate_inp" not in name else f32)
        for name, dims in tensors.items()
    }
    write_hole(writer, path, kinds)
    return tensors


def dry_run(llama_bin: Path, gguf: Path, type_: str, *flags: str) -> float | None:
    """MiB that llama-quantize says."""
    command = [llama_bin / "llama-quantize", "--dry-run", *flags, gguf, type_]
    said = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"quant size\s*=\s*([\d.]+) MiB", said.stdout + said.stderr)
    return float(found[1]) if found else None


def mixtral() -> Weights:
    """Eight experts a layer, as Mixtral names them."""
    like = llama_weights(8, 1024, 2048, 32000, 16, 4)
    tensors = {name: dims for name, dims in like.tensors.items() if ".mlp." not in name}
    for layer in range(8):
        moe = f"model.layers.{layer}.block_sparse_moe"
        tensors[f"{moe}.gate.weight"] = (8, 1024)
        for expert in range(8):
            for name, dims in (("w1", (2048, 1024)), ("w2", (1024, 2048)), ("w3", (2048, 1024))):
                tensors[f"{moe}.experts.{expert}.{name}.weight"] = dims
    return Weights(tensors, Shape(8, 4, 8, "llama"))


CASES = {
    "1B, tied": (LLAMA_1B, True),
    "8B": (LLAMA_8B, False),
    "70B": (LLAMA_70B, False),
    "widths that are no multiple of 256": (ODD, False),
}


@pytest.mark.parametrize("case", [*CASES, "experts"])
def test_every_type_is_predicted_within_three_percent(case, tmp_path, llama_bin):
    if case == "experts":
        weights, tied = mixtral(), False
        sizes = {
            "layers": 8,
            "hidden": 1024,
            "ffn": 2048,
            "vocabulary": 32000,
            "heads": 16,
            "kv_heads": 4,
        }
    else:
        sizes, tied = CASES[case]
        weights = llama_weights(**sizes)
    gguf = tmp_path / "sparse.gguf"
    tensors = sparse_gguf(gguf, weights, sizes, tied)
    wrong, compared = [], 0
    for type_ in QUANT_TYPES:
        said = dry_run(llama_bin, gguf, type_)
        if said is None:
            continue
        compared += 1
        types = quant_types(tensors, weights.shape, type_, {}, imatrix=False)
        kept = [
            (name, 16 if len(dims) > 1 and "gate_inp" not in name else 32)
            for name, dims in tensors.items()
        ]
        predicted = quant_bytes(tensors, types, kept) / 2**20
        if abs(predicted / said - 1) > 0.001:
            wrong.append(f"{type_}: {predicted:.1f} MiB predicted, {said} said")
    assert not wrong
    assert compared >= 25


def test_overrides_of_a_quant_are_predicted(tmp_path, llama_bin):
    weights = llama_weights(**LLAMA_1B)
    gguf = tmp_path / "sparse.gguf"
    tensors = sparse_gguf(gguf, weights, LLAMA_1B)
    kept = [(name, 16 if len(dims) > 1 else 32) for name, dims in tensors.items()]
    for options, flags in (
        (
            {"token_embedding_type": "q8_0", "output_tensor_type": "q8_0"},
            ["--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"],
        ),
        ({"pure": True}, ["--pure"]),
        ({"leave_output_tensor": True}, ["--leave-output-tensor"]),
        ({"tensor_types": ["ffn_down=q8_0"]}, ["--tensor-type", "ffn_down=q8_0"]),
    ):
        types = quant_types(tensors, weights.shape, "Q4_K_M", options, imatrix=False)
        said = dry_run(llama_bin, gguf, "Q4_K_M", *flags)
        assert quant_bytes(tensors, types, kept) / 2**20 == pytest.approx(said, rel=0.001), options


def test_tensors_that_cannot_have_their_quants_type_are_those_of_the_tools_own_log(
    tmp_path, llama_bin
):
    """Each type on a model as narrow as SmolLM2-135M (576), and on ones of other widths."""
    narrow = {
        "layers": 8,
        "hidden": 576,
        "ffn": 1536,
        "vocabulary": 4096,
        "heads": 9,
        "kv_heads": 3,
    }
    compared = 0
    for sizes, tied in ((narrow, True), (narrow, False), (ODD, False), (LLAMA_1B, True)):
        weights, gguf = llama_weights(**sizes), tmp_path / "sparse.gguf"
        tensors = sparse_gguf(gguf, weights, sizes, tied)
        for type_ in QUANT_TYPES:
            command = [llama_bin / "llama-quantize", "--dry-run", gguf, type_]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                continue
            said = done.stdout + done.stderr
            total = re.findall(r"(\d+) of (\d+) tensor\(s\) required fallback", said)
            types = set(re.findall(r"falling back to +(\w+)", said))
            mine = planned(tensors, weights.shape, type_, {}, imatrix=False)
            found = [(str(mine.count), str(mine.tensors))] if mine else []
            assert (total, types) == (found, set(mine.types if mine else ())), (type_, sizes)
            compared += len(total)
    assert compared > 75


@pytest.mark.parametrize("context", [8, 9, 511, 512])
def test_base_logits_have_a_row_for_each_position_that_exl2_is_scored_on_too(context):
    a_row = 2 * 4 + 2 * 6  # of a vocabulary of 5
    rows = (base_logits_bytes(1, context, 5) - 20 - 4 * context) / a_row
    assert rows == len(range(context)[scored(context)])


def test_base_logits_of_a_128k_vocabulary_are_predicted():
    # llama-perplexity b10605 on a vocabulary of 2048, context 256, 8 chunks; and the rule of thumb
    # of 65 MB a chunk.
    assert base_logits_bytes(8, 256, 2048) == 4177876
    assert base_logits_bytes(1, 512, 128256) == pytest.approx(65.4e6, rel=0.01)

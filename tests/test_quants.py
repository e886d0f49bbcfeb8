"""The catalogue of quant types against the pinned llama-quantize itself."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from lib.formats.quants import (
    QUANT_TYPES,
    TENSOR_ABORTS_WITHOUT_IMATRIX,
    TENSOR_BITS,
    TENSOR_NEEDS_IMATRIX,
    canonical,
)

MATRICES, WIDTH, NORMS = 16, 256, 5  # of the model below


@pytest.fixture(scope="module")
def quantize() -> Path:
    """llama-quantize of $QUANTMILL_TOOLS, or one that a build has compiled."""
    from lib.record.tools import cache_directory

    places = [Path(os.environ.get("QUANTMILL_TOOLS", "nowhere"))]
    places += [mark.parent / "bin" for mark in cache_directory().glob("llama.cpp-*/complete")]
    found = [place / "llama-quantize" for place in places if (place / "llama-quantize").is_file()]
    if not found:
        pytest.skip("llama.cpp's tools are not compiled yet: run snakemake once")
    return found[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A Llama's tensors and header: llama-quantize needs no tokenizer."""
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(WIDTH)
    norms = ["output_norm", *(f"blk.{i}.{n}_norm" for i in range(2) for n in ("attn", "ffn"))]
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    matrices = ["token_embd", "output", *(f"blk.{i}.{kind}" for i in range(2) for kind in kinds)]
    assert (len(matrices), len(norms)) == (MATRICES, NORMS)
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
    for name in matrices:
        writer.add_tensor(f"{name}.weight", np.ones((WIDTH, WIDTH), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run(quantize: Path, *arguments: object) -> str:
    command = [str(part) for part in (quantize, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def bits_per_weight(output: str) -> float:
    return float(re.search(r"quant size .*\(([\d.]+) BPW\)", output)[1])


def whole_file(bits: float) -> float:
    """Bits per weight of the model with all matrices at `bits`; norms stay f32."""
    matrices, norms = MATRICES * WIDTH**2, NORMS * WIDTH
    return (matrices * bits + norms * 32) / (matrices + norms)


def test_no_type_of_the_tool_is_missing_and_none_is_invented(quantize):
    listed = re.findall(
        r"^ +(?:\d+  or)? +([A-Z]\w+) +: (.*)$", run(quantize, "--help"), re.MULTILINE
    )
    aliases = {name: text[10:] for name, text in listed if text.startswith("alias for ")}
    assert [name for name, _ in listed] and {name for name, _ in listed} == set(QUANT_TYPES)
    assert aliases == {n: q.alias_of for n, q in QUANT_TYPES.items() if q.alias_of}


def test_a_type_that_needs_an_imatrix_is_known_before_hours_are_spent(quantize, model):
    refused = {
        name
        for name in QUANT_TYPES
        if "will require an imatrix" in run(quantize, "--dry-run", model, name)
    }
    assert refused == {name for name, entry in QUANT_TYPES.items() if entry.needs_imatrix}


def test_the_tensor_type_of_each_quant_is_the_tools(quantize, model):
    for name, entry in QUANT_TYPES.items():
        if entry.tensor is not None:
            output = run(quantize, "--dry-run", "--pure", model, name)
            expected = whole_file(TENSOR_BITS[entry.tensor])
            assert bits_per_weight(output) == pytest.approx(expected, abs=0.006), name


def test_every_tensor_type_is_taken_and_has_the_size_that_plans_count_with(quantize, model):
    for name, bits in TENSOR_BITS.items():
        output = run(quantize, "--dry-run", "--tensor-type", f"weight={name}", model, "Q8_0")
        assert bits_per_weight(output) == pytest.approx(whole_file(bits), abs=0.006), name
        needs = "will require an imatrix" in output
        assert needs == (name in TENSOR_NEEDS_IMATRIX), name


@pytest.mark.parametrize("name", sorted(TENSOR_ABORTS_WITHOUT_IMATRIX))
def test_an_embedding_type_that_makes_the_tool_abort_is_known(quantize, model, tmp_path, name):
    arguments = ["--token-embedding-type", name, model, tmp_path / "out.gguf", "Q8_0", 1]
    command = [str(part) for part in (quantize, *arguments)]
    # ggml's abort starts a debugger for its backtrace, which takes seconds.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode < 0


def test_a_type_may_be_written_as_people_do():
    assert canonical("q4_k_m") == canonical("Q4_K") == "Q4_K_M"
    assert canonical("Q4_KM") is None
    assert all(entry.name == name for name, entry in QUANT_TYPES.items())
    assert all(
        canonical(entry.alias_of or name) == canonical(name) for name, entry in QUANT_TYPES.items()
    )

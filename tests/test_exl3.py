"""EXL3 without a GPU: what the converter gets, what its results must have, what is said before.

tests/gpu/exl3.sh has the rest.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from exl3_convert import open_work, write_rows
from lib.cards.exl3 import Exl3Lines
from lib.errors import UserError
from lib.formats.exllamav3 import check_quantized
from lib.formats.safetensors_values import check_finite
from lib.record.recipe import Record
from lib.stages.exl3 import architectures
from project import Project
from tiny_models import make_bpe, make_llama, make_texts


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of two layers, with tokenizer.json."""
    directory = make_llama(tmp_path_factory.mktemp("exl3") / "m")
    make_bpe(directory)
    return directory


@pytest.fixture
def made(model: Path, tmp_path: Path) -> Path:
    """A directory with the files that exllamav3's converter writes for it."""
    directory = tmp_path / "made"
    directory.mkdir()
    keys = [f"model.layers.{layer}.mlp.{part}_proj" for layer in (0, 1) for part in ("up", "down")]
    tensors = {}
    for key in (*keys, "lm_head"):
        tensors[f"{key}.trellis"] = torch.zeros((2, 2, 64), dtype=torch.int16)
        tensors[f"{key}.suh"] = torch.ones(32, dtype=torch.float16)
    save_file(tensors, directory / "model.safetensors")
    for file in model.iterdir():
        if ".safetensors" not in file.name:
            shutil.copy(file, directory)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "exl3", "bits": 3.98, "head_bits": 6}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "quantization_config.json").write_text("{}")
    return directory


def without(directory: Path, *ends: str) -> None:
    """Take the tensors whose names end so out of its weights."""
    file = directory / "model.safetensors"
    kept = {
        key: torch.from_numpy(t) for key, t in load_file(file).items() if not key.endswith(ends)
    }
    save_file(kept, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made: without(made, "lm_head.trellis"), "no quantized output tensor"),
        (
            lambda made: [without(made, f"1.mlp.{p}_proj.trellis") for p in ("up", "down")],
            "layer 1",
        ),
        (lambda made: (made / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda made: (made / "model.safetensors").write_bytes(b"x" * 9), "model.safetensors"),
        (lambda made: (made / "config.json").write_text("{}"), "does not say that it is EXL3"),
    ],
)
def test_half_a_result_is_a_failure(made, spoil, message):
    check_quantized(made)
    spoil(made)
    with pytest.raises(UserError, match=message):
        check_quantized(made)


def test_a_head_that_is_not_quantized_is_as_it_was_asked_for(made):
    without(made, "lm_head.trellis")
    config = json.loads((made / "config.json").read_text())
    config["quantization_config"]["head_bits"] = 16
    (made / "config.json").write_text(json.dumps(config))
    check_quantized(made)


def test_a_nan_among_the_scales_is_found(made):
    check_finite(made)
    file = made / "model.safetensors"
    tensors = {key: torch.from_numpy(t) for key, t in load_file(file).items()}
    tensors["model.layers.1.mlp.up_proj.suh"][3] = float("inf")
    save_file(tensors, file)
    with pytest.raises(UserError, match="NaN or Inf in its tensor model.layers.1.mlp.up_proj.suh"):
        check_finite(made)


def test_only_an_interrupted_job_of_the_same_recipe_is_gone_on_with(tmp_path):
    """The converter itself would resume any, with the options of the old job."""
    work = tmp_path / "work"
    assert not open_work(work, "one")
    (work / "ckpt").mkdir()
    (work / "args.json").write_text("{}")
    (work / "ckpt/job.json").write_text('{"next_module_idx": 4}')
    assert open_work(work, "one") and (work / "ckpt/job.json").exists()
    assert not open_work(work, "two") and not (work / "ckpt").exists()
    (work / "args.json").write_text('{"bits": 4')
    assert not open_work(work, "two") and not (work / "args.json").exists()


def test_the_rows_of_a_text_follow_each_other(model, tmp_path):
    make_texts(tmp_path, 20)
    text, file = tmp_path / "calibration.txt", tmp_path / "rows.safetensors"
    assert write_rows(text, model, 5, 64, file) == 5
    rows = load_file(file)["input_ids"]
    assert rows.shape == (5, 64) and rows.dtype == np.int64
    assert write_rows(text, model, 1, 320, file) == 1
    assert (load_file(file)["input_ids"].ravel() == rows.ravel()).all()
    assert write_rows(text, model, 10**6, 64, file) < 10**6
    with pytest.raises(UserError, match="too few for one row of 1000000"):
        write_rows(text, model, 1, 10**6, file)


def test_without_a_gpu_it_is_said_what_to_leave_out_and_all_else_is_built(model, tmp_path):
    make_texts(tmp_path / "data", 10)
    corpora = {"evaluation": {"path": "data/evaluation.txt"}}
    section = {"source": str(model), "exl3": {"bits": [4]}, "evaluate": {"context": 64}}
    project = Project(tmp_path, {"corpora": corpora, "models": {"M": section}})
    said = project.run("--config", "skip=exl2", check=False)
    assert "EXL3 needs a CUDA GPU, and there is none; --config skip=exl3 leaves it out" in said
    assert not (tmp_path / "results").exists()
    assert "exl3_quantize" not in project.run("plan", "--config", "skip=exl3,mlx")
    planned = project.run("plan")
    for part in ("exl3/4.0bpw", "evaluation/4.0bpw-exl3.json", "evaluation/exllamav3.json"):
        assert part in planned
    known = tmp_path / "resources/environments/exllamav3/venv/lib/python3/site-packages"
    known = known / "exllamav3/architecture/gemma2.py"
    known.parent.mkdir(parents=True)
    known.write_text('    arch_string = "Gemma2ForCausalLM"\n')
    said = project.run("preflight", check=False)
    assert "LlamaForCausalLM: exllamav3 does not know this architecture" in said


def test_architectures_are_not_judged_before_exllamav3_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert architectures() == set()


@pytest.mark.parametrize(("corpus", "text"), [("default", ""), ("prose", " -cd prose.safetensors")])
def test_card_says_how_it_was_made_and_how_it_is_run(corpus, text):
    lines = Exl3Lines()
    options = {"bits": 4, "head_bits": 6, "rows": 250, "length": 2048, "shard_size": 8192}
    record = Record("results/M/exl3/4.0bpw", {"options": options}, "d", 1, "s")
    record.inputs = {"corpus": "f" * 64} if text else {}
    about = {"model": "M", "commands": {}, "exl3": {"corpus": corpus, "rows": 250, "length": 2048}}
    lines.describe(about, {"4.0bpw-exl3": record}, None)
    start = "python -m exllamav3.conversion.convert_model -i M -o M-4.0bpw-exl3 -w work"
    assert about["commands"]["exl3"] == [f"{start} -b 4 -hb 6 -ss 8192 -cr 250 -cc 2048{text}"]
    said = lines.calibration(about)
    assert ("ExLlamaV3's own texts" in said) is not bool(text)
    assert (f"sha256 `{'f' * 64}`" in said) is bool(text)
    row = {"path": "exl3/4.0bpw", "directory": "M-4.0bpw", "branch": lines.branch("4.0bpw-exl3")}
    assert lines.download(row, "acme/M-exl3", "M") == (
        "hf download acme/M-exl3 --revision 4.0bpw --local-dir M-4.0bpw"
    )
    assert "python main.py --model-dir exl3 --model-name 4.0bpw" in lines.run(row, None, about)

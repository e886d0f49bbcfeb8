"""compressed-tensors by llmcompressor, in its own environment, on a model of 1.4M weights."""

import json
import shutil
import subprocess

import pytest

from lib.formats.compressed_tensors import fault, kept, quantized
from project import ROOT, Project, sha256
from tiny_models import make_llama, make_models, make_texts

FORMS = ("FP8_DYNAMIC", "NVFP4A16", "W4A16-GPTQ", "W4A16-AWQ")
BY_TEXT = [
    {"scheme": "W4A16", "method": method, "rows": 4, "length": 128} for method in ("gptq", "awq")
]


@pytest.fixture(scope="module")
def quantized_model(tmp_path_factory) -> Project:
    """A model in three schemes, measured."""
    here = tmp_path_factory.mktemp("compressed")
    make_models(here / "m")
    make_texts(here / "data", 40)
    model = {"source": "./m/base", "compressed_tensors": {"schemes": [*FORMS[:2], *BY_TEXT]}}
    model |= {"evaluate": {"context": 128, "chunks": 4}}
    model["publish"] = {"compressed_tensors": "acme/Base-{form}", "license": "mit"}
    corpora = {name: {"path": f"data/{name}.txt"} for name in ("calibration", "evaluation")}
    project = Project(here, {"corpora": corpora, "models": {"Base": model}})
    project.build()
    return project


def in_environment(project: Project, script: str, *words: object) -> subprocess.CompletedProcess:
    python = project / "resources/environments/llmcompressor/venv/bin/python"
    command = [str(word) for word in (python, ROOT / "scripts" / script, *words)]
    return subprocess.run(command, cwd=project.path, capture_output=True, text=True)


def test_forms_are_measured_and_the_engine_alone_loses_next_to_nothing(quantized_model):
    project = quantized_model
    assert project.plan() == set()
    figures = {
        form: json.loads((project / f"results/Base/evaluation/{form}.json").read_text())
        for form in (*FORMS, "transformers")
    }
    floor = figures.pop("transformers")["kld"]["mean"]
    assert abs(floor) < 1e-5
    for form, found in figures.items():
        assert found["floor"]["mean"] == floor < found["kld"]["mean"] < 0.1, form
        assert (found["chunks"], found["context"]) == (4, 128)
    assert "calibration" in figures["W4A16-GPTQ"]["shared"]
    card = (project / "results/Base/README.md").read_text()
    assert "By the same engine the unquantized model itself has a KLD of 0.0000" in card
    page = " ".join((project / "results/Base/report/quality.html").read_text().split())
    assert "By transformers, against the unquantized model in llama.cpp" in page


def test_each_scheme_has_a_repository_of_its_own_with_the_commands_to_serve_it(quantized_model):
    quantized_model.build("results/Base/README.compressed_tensors.FP8_DYNAMIC.md")
    path = quantized_model / "results/Base/README.compressed_tensors.FP8_DYNAMIC.md"
    card = path.read_text()
    assert "hf download acme/Base-FP8-Dynamic --local-dir Base-FP8_DYNAMIC" in card
    assert "vllm serve acme/Base-FP8-Dynamic" in card
    assert 'pipeline("text-generation", "acme/Base-FP8-Dynamic")' in card


@pytest.mark.parametrize("form", FORMS)
def test_the_same_model_gives_the_same_bytes_every_time(quantized_model, tmp_path, form):
    shutil.copytree(quantized_model / "m/base", tmp_path / "elsewhere")
    scheme, *method = form.split("-")
    script, more = "compressed_tensors_quantize.py", []
    if method:
        script, more = "compressed_tensors_calibrate.py", ["--method", method[0].lower()]
        text = quantized_model / "resources/corpora/calibration.txt"
        more += ["--text", text, "--rows", 4, "--length", 128]
    words = (tmp_path / "elsewhere", "--scheme", scheme, *more, "--output", tmp_path / "again")
    done = in_environment(quantized_model, script, *words)
    assert done.returncode == 0, done.stderr
    first = quantized_model / f"results/Base/compressed-tensors/{form}"
    made = {file.name: sha256(file) for file in (tmp_path / "again").iterdir()}
    assert made == {file.name: sha256(file) for file in first.iterdir() if file.name[0] != "."}
    assert made.keys() >= {"config.json", "tokenizer.model", "model.safetensors"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("nan", "NaN or Inf in its tensor model.norm.weight"),
        ("lost", "tensors are not as the model wants them: model.norm.weight"),
        ("cut", "cut off or changed"),
    ],
)
def test_what_is_damaged_is_not_taken_for_done(quantized_model, tmp_path, damage, message):
    from safetensors.torch import load_file, save_file

    shutil.copytree(quantized_model / "results/Base/compressed-tensors/FP8_DYNAMIC", tmp_path / "f")
    file = tmp_path / "f/model.safetensors"
    tensors = load_file(file)
    if damage == "nan":
        tensors["model.norm.weight"][3] = float("nan")
    elif damage == "lost":
        del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    done = in_environment(quantized_model, "check_compressed_tensors.py", tmp_path / "f")
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1], done.stderr


def test_a_width_that_a_scheme_cannot_have_ends_the_run_before_anything_is_built(tmp_path):
    make_models(tmp_path / "m")
    make_llama(tmp_path / "m/base", ffn=192)
    model = {"source": "./m/base", "compressed_tensors": {"schemes": ["NVFP4A16", "W4A16"]}}
    said = Project(tmp_path, {"models": {"Base": model}}).run(check=False)
    assert "compressed-tensors/W4A16: W4A16 has a scale for 128 weights, and the rows of" in said
    assert "mlp.down_proj.weight have 192 (and those of 1 more)" in said
    assert not (tmp_path / "results").exists() and "NVFP4A16:" not in said


def test_embeddings_routers_and_other_towers_stay_as_they_are():
    matrix = (256, 256)
    stay = ("lm_head", "model.embed_tokens", "model.layers.0.mlp.gate", "model.visual.blocks.0.qkv")
    stay += ("model.layers.0.mlp.shared_expert_gate", "model.layers.0.input_layernorm")
    go = ("model.layers.0.mlp.experts.0.gate_proj", "model.layers.0.self_attn.q_proj")
    shapes = {f"{name}.weight": matrix for name in (*stay, *go)} | {"mixer.a.weight": (4, 1, 4)}
    assert set(quantized(shapes)) == {f"{name}.weight" for name in go}
    assert "mixer.a" in kept(shapes)
    assert "experts in INT8" in fault("INT8", shapes)

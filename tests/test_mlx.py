"""MLX by mlx-lm on processors, with a tiny model; its environment is made once a machine."""

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import speed
from lib.config.repositories import repositories
from lib.stages import mlx
from project import ROOT, Planned, Project
from tiny_models import make_llama, make_sentencepiece, make_texts

FORMS = ["4bit", "8bit", "mxfp4", "mxfp8", "nvfp4", "4bit-g32"]


def project_of(path: Path, forms: list, **shape: int) -> Project:
    """A model of this shape with these forms and, unlike most, without GGUF."""
    make_sentencepiece(make_llama(path / "m", **shape))
    # As transformers 5 writes it, which mlx-lm does not read.
    config = json.loads((path / "m/config.json").read_text())
    config["rope_parameters"] = {
        "rope_theta": 10 * config.pop("rope_theta"),
        "rope_type": "default",
    }
    (path / "m/config.json").write_text(json.dumps(config))
    make_texts(path / "data", 100)
    corpora = {"evaluation": {"path": "data/evaluation.txt"}}
    model = {"source": "./m", "mlx": {"forms": forms}, "evaluate": {"context": 128, "chunks": 3}}
    model["publish"] = {"mlx": "acme/M-mlx-{form}"}
    return Project(path, {"corpora": corpora, "models": {"M": model}})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Project:
    """All kinds of forms, built."""
    named = {"name": "4bit-g32", "bits": 4, "group_size": 32}
    project = project_of(tmp_path_factory.mktemp("mlx"), [4, 8, "mxfp4", "mxfp8", "nvfp4", named])
    project.build()
    return project


def record(project: Project, form: str) -> dict:
    return json.loads((project / f"results/M/mlx/{form}.recipe.json").read_text())


def python(project: Project) -> Path:
    return project / "resources/environments/mlx/venv/bin/python"


def test_forms_are_whole_and_measured_against_the_logits_of_llama_cpp(made):
    assert made.plan() == set()
    klds = {}
    for form in FORMS:
        here = made / "results/M/mlx" / form
        names = {file.name for file in here.iterdir() if file.name[0] != "."}
        assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < names
        assert {"model.safetensors", "model.safetensors.index.json"} < names
        assert "README.md" not in names, "an empty card would be published in place of ours"
        found = json.loads((made / f"results/M/evaluation/{form}.json").read_text())
        assert (found["engine"], found["chunks"], found["context"]) == ("mlx", 3, 128)
        assert 0 <= found["floor"]["mean"] < 1e-4
        klds[form] = found["kld"]["mean"]
        assert record(made, form)["notes"]["text"]
    of_8_bits, of_4 = ([klds[form] for form in FORMS if bits in form] for bits in "84")
    assert max(of_8_bits) < min(of_4) and max(of_4) == klds["mxfp4"]
    config = json.loads((made / "results/M/mlx/4bit-g32/config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
    assert config["rope_theta"] == 100_000, "mlx-lm would take 10000, another model"


def test_report_and_card_say_how_to_run_them_and_what_is_only_the_engine(made):
    card = (made / "results/M/README.md").read_text()
    assert "mlx_lm.server --model mlx/8bit" in card and "By the same engine the unquant" in card
    assert "mlx_lm.convert --hf-path M --mlx-path M-nvfp4 --quantize --q-mode nvfp4" in card
    page = " ".join((made / "results/M/report/quality.html").read_text().split())
    assert "By mlx the unquantized model itself has a KLD of" in page


def test_each_form_is_published_with_a_card_of_its_own(made):
    made.build("results/M/README.mlx.4bit.md")
    card = (made / "results/M/README.mlx.4bit.md").read_text()
    assert "# M-mlx-4bit" in card and "library_name: mlx" in card and "mxfp4" not in card
    assert "hf download acme/M-mlx-4bit --local-dir M-4bit" in card
    assert "mlx_lm.generate --model acme/M-mlx-4bit" in card


def test_the_same_recipe_gives_the_same_bytes(made, tmp_path):
    again = made.copy(tmp_path / "again")
    for form in FORMS:
        shutil.rmtree(again / f"results/M/mlx/{form}")
    again.build()
    for form in FORMS:
        assert record(again, form)["files"] == record(made, form)["files"], form


def test_evaluations_of_nvfp4_and_NVFP4_are_two_files_on_disks_that_ignore_case(
    made, tmp_path, monkeypatch
):
    """As on macOS, where one of them would replace the other and be taken for it."""
    again = made.copy(tmp_path / "again")
    again.config["corpora"]["calibration"] = {"path": "data/calibration.txt"}
    model = again.model("M")
    model["compressed_tensors"] = {"schemes": ["NVFP4", "NVFP4A16", "FP8_DYNAMIC"]}
    model["publish"]["compressed_tensors"] = "acme/M-{form}"
    monkeypatch.chdir(again.path)
    graph = Planned.open(again.config).graph
    paths = [path for artifact in graph for path in (artifact.path, *artifact.outputs)]
    assert len({path.lower() for path in paths}) == len(set(paths))
    found = {each.form: each.name for each in repositories(graph.config.models["M"])}
    assert (found["NVFP4"], found["nvfp4-mlx"]) == ("acme/M-NVFP4", "acme/M-mlx-nvfp4")
    planned = again.plan("--config", "skip=compressed_tensors")
    assert {path for path in planned if path.endswith(("json", "csv")) or "/mlx/" in path} == {
        "results/M/evaluation/nvfp4-mlx.json",
        "results/M/report/quality.csv",
    }
    again.build("--config", "skip=compressed_tensors")
    old, new = (again / f"results/M/evaluation/{form}.json" for form in ("nvfp4", "nvfp4-mlx"))
    assert json.loads(old.read_text())["kld"] == json.loads(new.read_text())["kld"]
    table = (again / "results/M/report/quality.csv").read_text()
    assert "nvfp4-mlx,results/M/mlx/nvfp4," in table, table


def test_the_speed_of_a_form_is_what_mlx_lm_counts_and_is_not_measured_on_processors(
    made, monkeypatch
):
    said = made.run("speed", "--cores", "1")
    assert re.search(r"  4bit +MLX is for Apple's GPUs; on processors it is so slow", said)
    assert not (made / "results/M/speed").exists()
    monkeypatch.chdir(made.path)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(speed, "LENGTHS", {"prompt_tokens": 8, "text_tokens": 6, "repetitions": 2})
    session = Planned.open(made.config)
    (form,) = (each for each in speed.forms(session) if each.name == "4bit")
    meter, here = form.family.speedometer(session.graph.shared), speed.this_machine()
    assert speed.obstacle(form, meter, here) is None and meter.engine.startswith("mlx-lm 0.")
    conditions = speed.Conditions(
        engine=meter.engine, command=meter.command, cpu="", gpus=[], threads=1, **speed.LENGTHS
    )
    found = speed.measure(form, meter, conditions)
    assert found.backend == "CPU" and found.prompt.mean > 0 and found.text.mean > 0


@pytest.mark.parametrize(("form", "tensor"), [("4bit", "scales"), ("mxfp4", "scales")])
def test_a_nan_in_a_form_is_found(made, tmp_path, form, tensor):
    shutil.copytree(made / "results/M/mlx" / form, tmp_path / "form")
    file = tmp_path / "form/model.safetensors"
    tensors, name = load_file(file), f"model.layers.1.mlp.down_proj.{tensor}"
    tensors[name][3, 1] = float("nan") if tensors[name].is_floating_point() else 255  # of E8M0
    save_file(tensors, file, {"format": "mlx"})
    command = [python(made), ROOT / "scripts/check_mlx.py", tmp_path / "form"]
    done = subprocess.run(command, capture_output=True, text=True)
    said = "NaN or Inf in its tensor model.layers.1.mlp.down_proj.weight"
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1], done.stderr


def test_ones_own_interpreter_is_used_and_of_the_same_versions_makes_nothing_stale(made, tmp_path):
    again = made.copy(tmp_path / "again")
    own = again.config["environments"] = {
        "mlx": str(python(made).parents[1].resolve() / "bin/python")
    }
    assert again.plan() == set()
    before = record(again, "4bit")
    shutil.rmtree(again / "results/M/mlx/4bit")
    again.build()
    assert record(again, "4bit")["files"] == before["files"]
    made_by = json.loads((again / "resources/environments/mlx.recipe.json").read_text())["recipe"]
    assert made_by["options"] == {"python": own["mlx"]}


def test_of_ones_own_interpreter_recipes_hold_the_versions_that_it_has(made, tmp_path):
    again = made.copy(tmp_path / "again")
    there = python(made).parents[1].resolve()
    subprocess.run(
        [there / "bin/python", "-m", "venv", "--without-pip", tmp_path / "own"], check=True
    )
    (packages,) = tmp_path.glob("own/lib/python*/site-packages")
    (packages / "rest.pth").write_text(f"{next(there.glob('lib/python*/site-packages'))}\n")
    (packages / "mlx_lm-0.31.0.dist-info").mkdir()
    (packages / "mlx_lm-0.31.0.dist-info/METADATA").write_text("Name: mlx-lm\nVersion: 0.31.0\n")
    again.config["environments"] = {"mlx": str(tmp_path / "own/bin/python")}
    assert {f"results/M/mlx/{form}" for form in FORMS} < again.plan()
    said = again.run("preflight", check=False)  # nothing can be published from here
    said = " ".join(said.split())
    assert " note environments.mlx /" in said and "mlx-lm 0.31.0 (tested: 0.32.2);" in said
    (packages / "rest.pth").unlink()
    said = again.run(check=False)
    assert "environments.mlx: " in said and "has no package mlx, transformers, " in said


def test_rows_that_groups_do_not_divide_are_refused_before_anything_is_made(tmp_path):
    project = project_of(tmp_path, [4, {"bits": 4, "group_size": 32}], hidden=96, ffn=192)
    said = project.run(check=False)
    assert "results/M/mlx/4bit: the rows of " in said and "96 weights, no multiple of 64" in said
    assert "g32: " not in said and not (project / "results").exists()


def test_a_model_that_mlx_lm_does_not_know_is_told_by_preflight(made, tmp_path):
    project = made.copy(tmp_path / "copy")
    assert re.search("ok +M mlx +can be made here", project.run("preflight", check=False))
    config = project / "m/config.json"
    config.write_text(config.read_text().replace('"llama"', '"no_llama"'))
    assert "no_llama: mlx-lm does not know this" in project.run("preflight", check=False)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (("glibc", "2.31"), "MLX needs glibc 2.35, and here is glibc 2.31; --config skip=mlx"),
        (("", ""), "MLX needs glibc 2.35, and here is another C library; --config skip=mlx"),
        (("glibc", "2.35"), None),
    ],
)
def test_a_machine_without_the_right_c_library_says_so(monkeypatch, there, said):
    monkeypatch.setattr(platform, "libc_ver", lambda: there)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    found = mlx.wrong_libc()
    assert found is None if said is None else found.startswith(said)

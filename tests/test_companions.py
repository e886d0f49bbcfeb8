"""Projectors and LoRA adapters as GGUF, of tiny models, by llama.cpp's converters and tools."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import check_lora
from lib.config.load import load
from lib.formats.base_logits import Logits
from lib.formats.gguf_file import read_gguf
from lib.hub.references import hub_sources
from lib.planning.publishing import manifest
from project import ROOT, Planned, Project
from tiny_models import make_adapter, make_llama, make_sentencepiece, make_texts, make_vision


@pytest.fixture(scope="module")
def made(tmp_path_factory, toolchain) -> Project:
    """A model that sees, a merge of two such, and a model with an adapter."""
    path = tmp_path_factory.mktemp("companions")
    make_vision(path / "one")
    make_vision(path / "two", seed=1)
    make_sentencepiece(make_llama(path / "plain"))
    make_adapter(path / "poet")
    make_adapter(path / "rooted", seed=1, rank=16, lora_alpha=4, use_rslora=True)
    make_texts(path / "data", 100)
    merge = {"merge_method": "slerp", "base_model": "./one", "parameters": {"t": 0.5}}
    merge |= {"models": [{"model": "./one"}, {"model": "./two"}], "dtype": "bfloat16"}
    seeing = {"quants": ["Q8_0"], "mmproj": ["f16", "q8_0"]}
    told = {"quants": ["Q8_0"], "lora": {"poet": "./poet", "rooted": "./rooted"}}
    models = {
        "Seeing": {"source": "./one", "gguf": seeing, "publish": {"gguf": "a/Seeing-GGUF"}},
        "Merged": {"merge": merge, "gguf": {"quants": ["Q4_0"], "mmproj": True}},
        "Plain": {"source": "./plain", "gguf": told, "publish": {"gguf": "a/Plain-GGUF"}},
    }
    project = Project(path, {"models": models})
    project.build("all", "results/Seeing/README.gguf.md", "results/Plain/README.gguf.md")
    return project


def checked(program: str, *words: str | Path) -> str:
    """The last line of what a check that finds a fault says."""
    command = [sys.executable, ROOT / "scripts" / program, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def notes(project: Project, path: str) -> dict:
    return json.loads((project / f"{path}.recipe.json").read_text())["notes"]


def changed(file: Path, to: Path, tensor: str, value: float) -> Path:
    """A copy of a GGUF, the first value of a tensor of F16 being another."""
    shutil.copy(file, to)
    offset = next(t.offset for t in read_gguf(file).tensors if t.name == tensor)
    data = np.memmap(to, np.float16, "r+", offset, 1)
    data[0] = value
    data.flush()
    return to


def test_a_projector_has_its_tower_and_llama_cpp_reads_an_image_with_it(made):
    assert made.plan() == set()
    for model, outtype in (("Seeing", "F16"), ("Seeing", "Q8_0"), ("Merged", "F16")):
        path = f"results/{model}/gguf/mmproj-{model}-{outtype}.gguf"
        told = {"towers": ["vision"], "parameters": 171_328, "read": True}
        assert notes(made, path) == told
        types = {t.name: t.type_name for t in read_gguf(made / path).tensors}
        assert types["v.blk.1.ffn_up.weight"] == outtype and len(types) == 38


def test_the_text_model_has_nothing_of_the_tower_and_its_size_is_foreseen(made, tmp_path):
    names = {t.name for t in read_gguf(made / "results/Seeing/gguf/Seeing-Q8_0.gguf").tensors}
    assert len(names) == 21 and not any(name.startswith("v.") for name in names)
    project = Project(tmp_path, {"models": {"Seeing": made.model("Seeing")}})
    shutil.copytree(made / "one", project / "one")
    said = project.run("plan")
    sizes = dict(re.findall(r"^  gguf/(\S+) +\w+ +([\d.]+) [kM]B", said, re.M))
    assert float(sizes["Seeing-Q8_0.gguf"]) < 1.9, "2.0 with the tower's tensors"
    assert "stored in other types" not in said, "the tower has a tensor of such a shape"
    assert abs(float(sizes["mmproj-Seeing-F16.gguf"]) / 426.2 - 1) < 0.01


def test_a_projector_without_tensors_is_an_error(made, tmp_path):
    """As the converter wrote them with status 0: llama.cpp issues 22656 and 24235."""
    writer = gguf.GGUFWriter(tmp_path / "empty.gguf", "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = made / "results/Seeing/gguf/mmproj-Seeing-F16.gguf"
    text = made / "results/Seeing/gguf/Seeing-Q8_0.gguf"
    options = ["--model", text, "--llama-cpp", '{"path": null, "cuda": "off", "portable": false}']
    said = checked("check_mmproj.py", tmp_path / "empty.gguf", *options)
    assert said.endswith(
        "layer 0 of the 2 of its vision tower has no tensor, and the file 0 in all"
    )
    nan = changed(whole, tmp_path / "nan.gguf", "v.blk.1.ffn_up.weight", np.nan)
    said = checked("check_mmproj.py", nan, *options)
    assert said.endswith("nan.gguf: NaN or Inf in its tensor v.blk.1.ffn_up.weight")
    assert checked("check_mmproj.py", text, *options).endswith("this is no projector")
    plain = made / "results/Plain/gguf/Plain-Q8_0.gguf"
    other = changed(whole, tmp_path / "other.gguf", "v.blk.1.ffn_up.weight", 0.5)
    other.write_bytes(other.read_bytes().replace(b"idefics3", b"idefics9"))
    said = checked("check_mmproj.py", other, "--model", plain, *options[2:])
    assert "llama-mtmd-cli cannot read media.png with it" in said


def test_an_adapter_changes_what_the_model_says(made):
    path = "results/Plain/gguf/Plain.lora-poet.gguf"
    assert notes(made, path) == {"tensors": 8, "parameters": 8192}
    assert read_gguf(made / path).metadata["general.name"] == "Poet", "not after its directory"


def test_an_rslora_changes_the_model_as_much_as_in_peft(made, tmp_path):
    """llama.cpp divides alpha by the rank, peft here by its root: the effect would be a quarter."""
    lora = made / "results/Plain/gguf/Plain.lora-rooted.gguf"
    assert notes(made, "results/Plain/gguf/Plain.lora-rooted.gguf")["alpha"] == 4 * 4
    model = AutoModelForCausalLM.from_pretrained(made / "plain")
    merged = PeftModel.from_pretrained(model, made / "rooted").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    shutil.copy(made / "plain/tokenizer.model", tmp_path / "merged")
    shutil.copy(made / "plain/tokenizer_config.json", tmp_path / "merged")
    converter = made / "resources/llama.cpp/convert_hf_to_gguf.py"
    command = [sys.executable, converter, tmp_path / "merged", "--outfile", tmp_path / "x.gguf"]
    subprocess.run([*command, "--outtype", "bf16"], check=True, capture_output=True)
    tool, base = made / "resources/llama.cpp/bin/llama-perplexity", "Plain-BF16.gguf"

    def logits(gguf: Path, *adapters: Path) -> np.ndarray:
        read = Logits(io.BytesIO(check_lora.logits(tool, gguf, list(adapters), 1)))
        return np.stack([read.log_p(row) for row in read.rows()])

    plain = made / "results/Plain/gguf" / base
    of_peft, ours, without = logits(tmp_path / "x.gguf"), logits(plain, lora), logits(plain)
    assert np.abs(ours - of_peft).mean() < 0.05 * np.abs(without - of_peft).mean()


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("blk.0.attn_q.weight.lora_b", "NaN or Inf in its tensor blk.0.attn_q.weight.lora_b"),
        (None, "changes nothing: all logits are those of the model alone"),
    ],
)
def test_an_adapter_with_nan_or_without_effect_is_an_error(made, tmp_path, tensor, said):
    whole, lora = made / "results/Plain/gguf/Plain.lora-poet.gguf", tmp_path / "x.gguf"
    if tensor:
        changed(whole, lora, tensor, np.nan)
    else:
        shutil.copy(whole, lora)
        for part in read_gguf(whole).tensors:
            if part.name.endswith("lora_b"):
                np.memmap(lora, np.uint8, "r+", part.offset, part.size)[:] = 0
    options = ["--model", made / "plain", "--lora", lora]
    options += ["--gguf", made / "results/Plain/gguf/Plain-BF16.gguf"]
    options += ["--perplexity-tool", made / "resources/llama.cpp/bin/llama-perplexity"]
    assert checked("check_lora.py", made / "poet", *options).endswith(said)


def test_an_adapter_of_another_model_is_refused_before_anything_is_built(made, tmp_path):
    project = made.copy(tmp_path / "copy")
    make_adapter(project / "wide", hidden=128)
    (project / "tower").mkdir()
    shutil.copy(project / "poet/adapter_config.json", project / "tower")
    tensors = load_file(project / "poet/adapter_model.safetensors")
    name = "base_model.model.model.vision_model.encoder.layers.0.mlp.fc1.lora_A.weight"
    save_file(tensors | {name: tensors.popitem()[1]}, project / "tower/adapter_model.safetensors")
    shutil.copytree(project / "poet", project / "pickled")
    (project / "pickled/adapter_model.safetensors").rename(project / "pickled/adapter_model.bin")
    for adapter, said in (
        ("wide", "'./wide' is for another model: base_model.model.model.layers.0.self_attn.o_proj"),
        ("tower", "fc1.lora_A.weight is of a vision or audio tower, and only the text model takes"),
        ("pickled", "'./pickled' has no adapter_model.safetensors; pickles (.bin) are not taken"),
    ):
        project.model("Plain")["gguf"]["lora"] = {"x": f"./{adapter}"}
        assert said in project.run(check=False)
    project.model("Plain")["gguf"]["lora"] = {}
    project.model("Plain")["gguf"]["mmproj"] = True
    said = "models.Plain.gguf.mmproj: its config.json has nothing of vision or audio"
    assert said in project.run(check=False)


def test_cards_and_reports_say_how_to_load_them_and_how_large_they_are(made):
    card = (made / "results/Seeing/README.md").read_text()
    run = "llama-server -m gguf/Seeing-Q8_0.gguf --mmproj gguf/mmproj-Seeing-F16.gguf"
    assert run in card and "(0.43 MB), the projector" in card
    card = (made / "results/Plain/README.md").read_text()
    assert "# An rsLoRA: llama.cpp needs lora_alpha 16 in rooted/adapter_config.json" in card
    assert "--lora gguf/Plain.lora-poet.gguf" in card and "the LoRA adapter poet" in card
    assert "convert_lora_to_gguf.py poet --base Plain --outtype f16" in card
    card = (made / "results/Seeing/README.gguf.md").read_text()
    assert "--mmproj mmproj-Seeing-F16.gguf`; `-hf` finds it by itself" in card
    page = (made / "results/Plain/report/quality.html").read_text()
    assert "not in these sizes: Plain.lora-poet.gguf (0.02 MB)" in page


def test_they_are_published_beside_the_quants_under_the_names_that_hf_finds(made, monkeypatch):
    monkeypatch.chdir(made.path)
    found = manifest(Planned.open(made.config).graph)["repos"]
    files = {file["name"] for repo in found for file in repo["branches"]["main"]}
    assert {"mmproj-Seeing-F16.gguf", "mmproj-Seeing-Q8_0.gguf"} < files
    assert {"Plain.lora-poet.gguf", "Plain-Q8_0.gguf"} < files


def test_preflight_knows_which_models_see(made, tmp_path):
    said = made.run("preflight", check=False)
    assert "Idefics3ForConditionalGeneration: known to the converter" in said
    project = made.copy(tmp_path / "copy")
    config = project / "one/config.json"
    config.write_text(config.read_text().replace('"Idefics3For', '"Idefics9For'))
    said = project.run("preflight", check=False)
    assert "the converter of this llama.cpp knows no projector of it" in said


def test_an_adapter_on_the_hub_is_locked_with_the_models(made):
    config = {"models": {"M": {"source": "a/b", "gguf": {"lora": {"poet": "c/d@main"}}}}}
    found = hub_sources(load(config, made.path)[0])
    assert [source.ref for source in found] == ["a/b", "c/d@main"]

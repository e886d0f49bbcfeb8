"""Drafts: layers for multi-token prediction as GGUFs of their own, of a tiny Qwen3.5.

llama.cpp's converter knows tokenizers by the hash of what they make of a text. That of a tiny
tokenizer is written into a copy of it, as its authors tell people to do with a new tokenizer.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from gguf_speed import extra_tool
from lib.formats.gguf_file import read_gguf
from lib.planning.publishing import manifest
from lib.record.tools import bundled_version
from project import Planned, Project
from test_companions import changed, checked, notes
from tiny_models import make_llama, make_mtp, make_sentencepiece

BUILT = {"path": None, "cuda": "off", "portable": False}
DRAFT = "results/M/gguf/mtp-M-Q8_0.gguf"


def own_llama_cpp(directory: Path, toolchain: Path, model: Path) -> Path:
    """A llama.cpp with llama-server, whose converter knows the model's tokenizer."""
    shutil.copytree(toolchain, directory)  # links are followed
    file = directory / "conversion/base.py"
    text = file.read_text()
    tested = literal_eval(re.search(r"chktxt = ('.*')", text)[1])
    tokens = AutoTokenizer.from_pretrained(model).encode(tested)
    found = hashlib.sha256(str(tokens).encode()).hexdigest()
    first = text.index("        if chkhsh == ")
    known = f'        if chkhsh == "{found}":\n            res = "gpt-2"\n'
    file.write_text(text[:first] + known + text[first:])
    server = extra_tool("llama-server", BUILT | {"version": bundled_version()}, 2)
    (directory / "bin/llama-server").symlink_to(server)
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory, toolchain) -> Project:
    """A model with its draft, in two types."""
    path = tmp_path_factory.mktemp("drafts")
    own_llama_cpp(path / "llama.cpp", toolchain, make_mtp(path / "m"))
    make_sentencepiece(make_llama(path / "plain", hidden=128))
    gguf = {"quants": ["Q8_0"], "mtp": ["q8_0", "bf16"]}
    model = {"source": "./m", "gguf": gguf, "publish": {"gguf": "a/M-GGUF"}}
    project = Project(path, {"llama_cpp": {"path": "./llama.cpp"}, "models": {"M": model}})
    project.build("all", "results/M/README.gguf.md")
    return project


def test_a_draft_guesses_what_the_model_writes(made):
    assert made.plan() == set()
    for outtype in ("Q8_0", "BF16"):
        path = f"results/M/gguf/mtp-M-{outtype}.gguf"
        found = notes(made, path)
        assert (found["layers"], found["parameters"]) == (1, 1_312_768)
        assert found["right"] > 0.8 * found["guessed"] > 0, found
        types = {t.name: t.type_name for t in read_gguf(made / path).tensors}
        assert types["blk.2.nextn.eh_proj.weight"] == outtype and "blk.0.ffn_up.weight" not in types


def test_its_size_is_foreseen(made, tmp_path):
    config = {"llama_cpp": {"path": str(made / "llama.cpp")}, "models": {"M": made.model("M")}}
    project = Project(tmp_path, config)
    shutil.copytree(made / "m", project / "m")
    sizes = dict(re.findall(r"^  gguf/(\S+) +\w+ +([\d.]+) MB", project.run("plan"), re.M))
    for outtype in ("Q8_0", "BF16"):
        size = (made / f"results/M/gguf/mtp-M-{outtype}.gguf").stat().st_size / 1e6
        assert abs(float(sizes[f"mtp-M-{outtype}.gguf"]) / size - 1) < 0.03


def test_a_draft_that_is_not_whole_or_does_not_fit_is_an_error(made, tmp_path):
    whole, model = made / DRAFT, made / "results/M/gguf/M-Q8_0.gguf"
    options = ["--model", model, "--llama-cpp", json.dumps(BUILT)]
    nan = changed(whole, tmp_path / "nan.gguf", "blk.2.nextn.enorm.weight", np.nan)
    with nan.open("r+b") as file:  # of F32
        offset = next(
            t.offset for t in read_gguf(nan).tensors if t.name == "blk.2.nextn.enorm.weight"
        )
        file.seek(offset)
        file.write(np.float32(np.nan).tobytes())
    said = checked("check_mtp.py", nan, *options)
    assert said.endswith("nan.gguf: NaN or Inf in its tensor blk.2.nextn.enorm.weight")
    plain = tmp_path / "plain.gguf"
    converter = made / "resources/llama.cpp/convert_hf_to_gguf.py"
    command = [sys.executable, converter, made / "plain", "--outfile", plain]
    subprocess.run(command, check=True, capture_output=True)
    said = checked("check_mtp.py", plain, *options)
    assert said.endswith("plain.gguf: its header counts no layers for multi-token prediction")
    lacking = tmp_path / "lacking.gguf"
    lacking.write_bytes(whole.read_bytes().replace(b"blk.2.", b"blk.1."))
    said = checked("check_mtp.py", lacking, *options)
    assert said.endswith("layer 2, of 1 for multi-token prediction, has no tensor")
    said = checked("check_mtp.py", whole, "--model", plain, *options[2:])
    assert "llama-server cannot use it as the draft of plain.gguf: " in said


def test_a_model_without_such_layers_is_refused_before_anything_is_built(made, tmp_path):
    project = made.copy(tmp_path / "copy")
    project.model("M")["source"] = "./plain"
    said = project.run(check=False)
    assert "models.M.gguf.mtp: its config.json counts no layers for multi-token prediction" in said


def test_preflight_knows_of_which_models_drafts_can_be_made(made, tmp_path):
    project = made.copy(tmp_path / "copy")
    assert "knows no draft" not in project.run("preflight", check=False)
    config = project / "m/config.json"
    config.write_text(config.read_text().replace("Qwen3_5For", "Qwen3For"))
    said = " ".join(project.run("preflight", check=False).split())
    assert "Qwen3ForCausalLM: the converter of this llama.cpp knows no draft of it" in said


def test_it_is_published_beside_the_quants_with_a_command_under_the_name_that_hf_finds(
    made, monkeypatch
):
    card = (made / "results/M/README.gguf.md").read_text()
    assert "llama-server -m M-Q8_0.gguf -md mtp-M-Q8_0.gguf --spec-type draft-mtp`; `-hf`" in card
    assert "convert_hf_to_gguf.py M --mtp --outtype q8_0 --model-name M --outfile mtp-M-Q8" in card
    monkeypatch.chdir(made.path)
    (repo,) = manifest(Planned.open(made.config).graph)["repos"]
    files = {file["name"] for file in repo["branches"]["main"]}
    assert {"mtp-M-Q8_0.gguf", "mtp-M-BF16.gguf", "M-Q8_0.gguf"} < files

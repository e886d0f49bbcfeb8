"""LoRA adapters extracted by mergekit from tiny models, loaded by peft and by llama.cpp."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lib.config.load import load
from lib.errors import UserError
from lib.flags.extract_lora import extract_lora_flags
from lib.formats.gguf_file import read_gguf
from lib.hub.references import hub_sources
from lib.stages.extract_lora import Adapter
from project import ROOT, Planned, Project
from tiny_models import make_models, make_texts

RANK = 6  # of the fine-tune's change
MERGE = {"merge_method": "task_arithmetic", "base_model": "Base", "dtype": "bfloat16"}
MERGE |= {"models": [{"model": "./m/tuned", "parameters": {"weight": 0.5}}]}
FOR_GGUF = {"rank": RANK, "embed_lora": True, "skip_undecomposable": True}


def make_tuned(directory: Path, base: Path) -> None:
    """A fine-tune whose matrices differ from the base's by matrices of a low rank."""
    import torch

    shutil.copytree(base, directory)
    draw = torch.Generator().manual_seed(1)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            rows, columns = tensor.shape
            up, down = torch.randn(rows, RANK, generator=draw), torch.randn(
                RANK, columns, generator=draw
            )  # fmt: skip
            tensors[name] = (tensor.float() + 0.02 * up @ down).to(torch.bfloat16)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def made(tmp_path_factory, toolchain) -> Project:
    """Merged: two adapters of a merge, one of which goes with the GGUF of its base. Tuned: one."""
    path = tmp_path_factory.mktemp("lora")
    make_models(path / "m")
    make_tuned(path / "m/tuned", path / "m/base")
    make_texts(path / "data", 20)
    models = {
        "Base": {
            "source": "./m/base",
            "gguf": {"quants": ["Q8_0"], "lora": {"merged": "./results/Merged/lora/small"}},
        },
        "Merged": {
            "merge": MERGE,
            "extract_lora": {"adapters": {"small": FOR_GGUF, "whole": {"rank": RANK}}},
        },
        "Tuned": {
            "source": "./m/tuned",
            "extract_lora": {
                "base": "Base",
                "adapters": {
                    "two": {"rank": 2},
                    "six": {"rank": 6},
                    "first": {**FOR_GGUF, "include_regex": ["layers.0."]},
                },
            },
        },
    }
    project = Project(path, {"models": models})
    project.said = project.run("plan")
    project.build()
    return project


def record(project: Project, path: str) -> dict:
    return json.loads((project / f"{path}.recipe.json").read_text())


def run(program: str, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / program, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.arange(3, 100)[None]).logits.float()


def test_with_the_adapter_in_peft_the_base_says_what_the_model_says(made):
    import peft
    import transformers

    load_model = transformers.AutoModelForCausalLM.from_pretrained
    base, tuned = load_model(made / "m/base"), load_model(made / "m/tuned")
    far = (logits(base) - logits(tuned)).square().mean()
    adapted = peft.PeftModel.from_pretrained(base, made / "results/Tuned/lora/six")
    near = (logits(adapted) - logits(tuned)).square().mean()
    assert near < 0.01 * far


def test_the_record_says_how_near_it_comes(made):
    left = {name: record(made, f"results/Tuned/lora/{name}")["notes"] for name in ("two", "six")}
    assert left["six"]["left"] < 0.05, "the change is of this rank, but for the rounding"
    assert 0.5 < left["two"]["left"] < 0.9 and left["two"]["worst"][1] >= left["two"]["left"]
    pairs = load_file(made / "results/Tuned/lora/two/adapter_model.safetensors")
    assert left["two"]["parameters"] == sum(tensor.numel() for tensor in pairs.values())


def test_an_adapter_of_some_layers_is_told_how_much_is_left_in_the_others(made):
    notes = record(made, "results/Tuned/lora/first")["notes"]
    assert 0.5 < notes["left"] < 0.9 and notes["worst"][1] == 1
    assert "layers.1." in notes["worst"][0]


def test_a_base_of_an_unknown_architecture_is_named_and_nothing_of_it_is_called(made, tmp_path):
    shutil.copytree(made / "m/base", tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps(config | {"architectures": ["pipeline"]}))
    adapter, model = made / "results/Tuned/lora/two", made / "m/tuned"
    done = run("check_extract_lora.py", adapter, "--base", tmp_path / "base", "--model", model)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "has no model that is called pipeline (config.json)" in done.stderr


def test_a_merge_has_the_base_of_its_configuration(made):
    config = json.loads((made / "results/Merged/lora/small/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "./m/base" and config["r"] == RANK
    assert config["modules_to_save"] == []
    assert config["target_modules"] == sorted(config["target_modules"])
    assert record(made, "results/Merged/lora/whole")["notes"]["left"] < 0.1
    assert str(made.path) not in json.dumps(config)
    files = {file.name for file in (made / "results/Merged/lora/small").iterdir()}
    assert files - {".snakemake_timestamp"} == {"adapter_config.json", "adapter_model.safetensors"}


def test_llama_cpp_applies_it_to_the_gguf_of_the_base(made):
    """scripts/check_lora.py compares the logits with it and without."""
    path = "results/Base/gguf/Base.lora-merged.gguf"
    assert record(made, path)["notes"]["tensors"] == 2 * (2 * 7 + 2)
    names = {tensor.name for tensor in read_gguf(made / path).tensors}
    assert {"token_embd.weight.lora_a", "blk.1.ffn_down.weight.lora_b"} < names
    assert made.plan() == set()


def test_its_size_is_foreseen(made):
    for model, name in re.findall(r"results/(\w+)/lora/(\w+)", "results/Merged/lora/small"):
        said = re.search(rf"lora/{name} +extract_lora +([\d.]+) kB", made.said)[1]
        assert (
            abs(float(said) * 1e3 / record(made, f"results/{model}/lora/{name}")["bytes"] - 1) < 0.1
        )
    whole = float(re.search(r"lora/whole +extract_lora +([\d.]+) kB", made.said)[1])
    assert abs(whole * 1e3 / record(made, "results/Merged/lora/whole")["bytes"] - 1) < 0.1


def test_the_same_bytes_come_out_twice_in_another_directory(made, tmp_path):
    words = ("--model", made / "m/tuned", "--base", made / "m/base", "--base-name", "./m/base")
    options = extract_lora_flags(Adapter(rank=6).model_dump())
    done = run("extract_lora.py", *words, "--output", tmp_path / "out", "--", *options)
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "out").iterdir():
        ours = (made / "results/Tuned/lora/six" / file.name).read_bytes()
        assert hashlib.sha256(ours).digest() == hashlib.sha256(file.read_bytes()).digest(), file


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("nan", "with it the base is no nearer to the model"),
        ("zero", "with it the base is no nearer to the model"),
        ("name", "peft ignores its tensor base_model.model.model.layers.9"),
        ("shape", "peft cannot load it"),
    ],
)
def test_an_adapter_that_peft_cannot_use_or_that_does_nothing_is_an_error(
    made, tmp_path, damage, said
):
    import torch

    adapter = shutil.copytree(made / "results/Tuned/lora/six", tmp_path / "x")
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in list(tensors):
        if "lora_B" in name and damage in ("nan", "zero"):
            tensors[name] = tensors[name] * (0 if damage == "zero" else torch.nan)
        elif "layers.1.self_attn.q_proj.lora_B" in name and damage == "name":
            tensors[name.replace("layers.1", "layers.9")] = tensors.pop(name)
        elif "lora_B" in name and damage == "shape":
            tensors[name] = tensors[name][:-1].contiguous()
    for name in list(tensors):
        if damage == "zero" and "lora_" not in name:
            base = load_file(made / "m/base/model.safetensors")
            tensors[name] = base[name.removeprefix("base_model.model.")]
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    done = run("check_extract_lora.py", adapter, "--base", made / "m/base", "--model",
               made / "m/tuned")  # fmt: skip
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1], done.stderr


def test_a_model_that_is_its_base_has_nothing_to_extract(made, tmp_path):
    words = (made / "results/Tuned/lora/six", "--base", made / "m/base", "--model", made / "m/base")
    done = run("check_extract_lora.py", *words)
    assert done.stderr.splitlines()[-1].endswith("there is nothing to extract")


def test_patterns_that_leave_nothing_are_one_line(made, tmp_path):
    words = ("--model", made / "m/tuned", "--base", made / "m/base", "--base-name", "a/b")
    options = ("--", "--exclude-regex", ".")
    done = run("extract_lora.py", *words, "--output", tmp_path / "out", *options)
    assert done.stderr.splitlines()[-1] == "extract_lora: no module is left to extract a LoRA of"


def test_the_options_are_mergekits():
    from mergekit.scripts.extract_lora import main

    ours = {option.removeprefix("--").removeprefix("no-")
            for option in extract_lora_flags(
                {"rank": 1, "sv_epsilon": 0, "distribute_scale": True, "embed_lora": True,
                 "skip_undecomposable": True, "save_module": ["a"], "exclude_regex": ["a"],
                 "include_regex": ["a"]}) if option.startswith("--")}  # fmt: skip
    own = [option for option in main.params if option.name in (
        "max_rank", "distribute_scale", "embed_lora", "modules_to_save", "exclude_regexes",
        "include_regexes", "sv_epsilon", "skip_undecomposable")]  # fmt: skip
    assert ours == {max(option.opts, key=len).removeprefix("--") for option in own}
    defaults = {option.name: option.default for option in own}
    assert Adapter().rank == defaults["max_rank"] and Adapter().sv_epsilon == defaults["sv_epsilon"]
    for key in ("distribute_scale", "embed_lora", "skip_undecomposable"):
        assert getattr(Adapter(), key) == defaults[key]


def test_an_adapter_that_llama_cpp_cannot_apply_is_refused_before_anything_is_built(made):
    config = json.loads(json.dumps(made.config))
    lora = config["models"]["Base"]["gguf"]["lora"]
    for name, said in (
        ("whole", "cannot be applied by llama.cpp: it holds model.embed_tokens whole; set embed_l"),
        ("smal", "is none: models.Merged.extract_lora has no adapter 'smal'; did you mean small?"),
    ):
        lora["merged"] = f"./results/Merged/lora/{name}"
        with pytest.raises(UserError, match=re.escape(f"'./results/Merged/lora/{name}' {said}")):
            load(config, made.path)


def test_preflight_says_that_a_model_and_its_base_differ_in_shape(made, tmp_path):
    assert re.search(r"ok +models.Merged.extract_lora +fits its base Base", made.run("preflight"))
    copy = made.copy(tmp_path / "copy")
    config = json.loads((copy / "m/tuned/config.json").read_text()) | {"vocab_size": 520}
    (copy / "m/tuned/config.json").write_text(json.dumps(config))
    said = copy.run("preflight", check=False)
    assert re.search(r"problem +models.Tuned.extract_lora +vocab_size is 520, and 512 in", said)


def test_the_base_is_locked_with_the_models_also_by_another_models_name(tmp_path):
    section = {"base": "Far", "adapters": {"x": {"rank": 4}}}
    models = {"M": {"source": "a/b", "extract_lora": section}, "Far": {"source": "c/d@main"}}
    config, _ = load({"models": models}, tmp_path)
    assert [source.ref for source in hub_sources(config, ["M"])] == ["a/b", "c/d@main"]


def test_a_further_adapter_is_built_alone(made, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").symlink_to(made / "m")
    planned = Planned(json.loads(json.dumps(made.config)))
    assert planned.plan() == set()
    adapters = planned.config["models"]["Merged"]["extract_lora"]["adapters"]
    adapters["more"] = {"rank": 9}
    assert planned.plan() == {"results/Merged/lora/more", "results/Merged/safetensors"} - {
        "results/Merged/safetensors"
    }
    del adapters["more"]
    adapters["small"]["rank"] = 5
    follows = {"gguf/Base.lora-merged.gguf", "report/quality.csv", "README.md"}
    assert planned.plan() == {"results/Merged/lora/small"} | {
        f"results/Base/{name}" for name in follows
    }

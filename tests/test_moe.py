"""Mixtures of experts by mergekit-moe, of tiny models, built and run by the real tools."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from lib.config.load import load
from lib.config.moes import EXPERT_KEYS, MOE_KEYS
from lib.errors import UserError
from lib.formats.gguf_file import read_gguf
from lib.formats.moe_architectures import OUTPUTS, choose
from lib.hub.references import hub_sources
from lib.planning.publishing import manifest
from project import ROOT, Planned, Project
from tiny_models import make_bpe, make_llama, make_models, make_texts

CODE = {"source_model": "./m/code", "positive_prompts": ["def main(argv)", "print(number)"]}
PROSE = {"source_model": "./m/prose", "positive_prompts": ["The library keeps what it reads"]}
PROSE |= {"negative_prompts": ["def"]}
MOE = {"base_model": "Base", "gate_mode": "hidden", "dtype": "bfloat16", "experts": [CODE, PROSE]}
MERGE = {"merge_method": "linear", "dtype": "bfloat16"}
MERGE |= {"models": [{"model": f"./m/{n}", "parameters": {"weight": 1}} for n in ("code", "prose")]}
THREE = [CODE, {"source_model": "Between"}, {"source_model": "./m/prose", "noise_scale": 0.001}]
DRAWN = MOE | {"gate_mode": "random", "experts": THREE}


@pytest.fixture(scope="module")
def made(tmp_path_factory, toolchain) -> Project:
    """Mixed: two experts. Three: three, of which one is a merge of the config, with drawn gates."""
    path = tmp_path_factory.mktemp("moe")
    make_models(path / "m", "code", "prose")
    make_texts(path / "data", 100)
    models = {
        "Base": {"source": "./m/base"},
        "Between": {"merge": MERGE},
        "Mixed": {
            "moe": MOE,
            "gguf": {"quants": ["Q4_K_M"]},
            "evaluate": {"context": 128, "chunks": 3},
            "publish": {"safetensors": "a/Mixed", "gguf": "a/Mixed-GGUF"},
        },
        "Three": {"moe": DRAWN, "random_seed": 5, "gguf": {"imatrix": {}, "quants": ["Q4_K_M"]}},
    }
    corpora = {name: {"path": f"data/{name}.txt"} for name in ("calibration", "evaluation")}
    project = Project(path, {"corpora": corpora, "models": models, "reclaim": ["safetensors"]})
    project.said = project.run("plan")
    project.build()
    return project


def run(program: str, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "scripts" / program, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def build(moe: dict, output: Path, seed: int = 0) -> Path:
    """A mixture by scripts/moe.py, its models being paths."""
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(moe))
    done = run("moe.py", "--config", file, "--output", output, "--seed", seed)
    assert done.returncode == 0, done.stderr
    return output


def within(moe: dict, place: Path) -> dict:
    """The configuration with the models' directories in `place`."""
    text = json.dumps(moe).replace("./m/", f"{place}/").replace('"Base"', f'"{place}/base"')
    return json.loads(text)


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def logits(directory: Path):
    """What transformers computes of a model for some tokens."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(3, 100)[None]).logits


def record(project: Project, path: str) -> dict:
    return json.loads((project / f"{path}.recipe.json").read_text())


def test_a_mixture_becomes_a_gguf_that_runs_and_is_measured(made):
    assert made.plan() == set()
    for name, experts in (("Mixed", 2), ("Three", 3)):
        quant = read_gguf(made / f"results/{name}/gguf/{name}-Q4_K_M.gguf")
        assert quant.metadata["llama.expert_count"] == experts
        assert quant.metadata["llama.expert_used_count"] == 2
        assert "blk.1.ffn_gate_exps.weight" in {tensor.name for tensor in quant.tensors}
        parameters = record(made, f"results/{name}/safetensors")["notes"]["parameters"]
        assert parameters == sum(tensor.elements for tensor in quant.tensors)
    found = json.loads((made / "results/Mixed/evaluation/Q4_K_M.json").read_text())
    assert 0 < found["kld"]["mean"] < 0.1


def test_its_weights_are_reclaimed_as_a_merges_are_unless_they_are_published(made):
    assert (made / "results/Mixed/safetensors/config.json").is_file()
    assert not (made / "results/Three/safetensors").exists()
    assert not (made / "results/Three/gguf/Three-BF16.gguf").is_symlink()
    assert "MoE" not in made.said and made.plan() == set()


def test_its_size_is_foreseen(made):
    sizes = dict(re.findall(r"^  gguf/(Mixed\S+|Three\S+) +\w+ +~?([\d.]+) MB", made.said, re.M))
    for name in ("Mixed-BF16", "Mixed-Q4_K_M", "Three-Q4_K_M"):
        bytes_ = record(made, f"results/{name[:5]}/gguf/{name}.gguf")["bytes"]
        assert abs(float(sizes[f"{name}.gguf"]) * 1e6 / bytes_ - 1) < 0.2, name
    weights = float(re.search(r"^  safetensors +moe +([\d.]+) MB", made.said, re.M)[1])
    assert abs(weights * 1e6 / record(made, "results/Mixed/safetensors")["bytes"] - 1) < 0.01


def test_its_card_says_what_it_is_and_how_it_was_made(made, tmp_path):
    copy = made.copy(tmp_path / "copy")
    copy.build("results/Mixed/README.gguf.md")
    card = (copy / "results/Mixed/README.gguf.md").read_text()
    assert (
        ", a mixture of 2 experts." in card
        and "mergekit-moe moe.yaml Mixed --random-seed 0\n" in card
    )
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["base_model"] == ["a/Mixed"] and {"moe", "mergekit"} < set(facts["tags"])
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == MOE
    written = (made / "results/Mixed/safetensors/mergekit_moe_config.yml").read_text()
    assert yaml.safe_load(written) == MOE


def test_it_is_published_as_full_weights_and_as_gguf(made, monkeypatch):
    monkeypatch.chdir(made.path)
    found = {repo["repo"]: repo for repo in manifest(Planned.open(made.config).graph)["repos"]}
    (weights,) = (f for f in found["a/Mixed"]["branches"]["main"] if not f["name"])
    assert weights["artifact"] == "results/Mixed/safetensors"
    assert "Mixed-safetensors" in found["a/Mixed-GGUF"]["recipes"]


@pytest.mark.slow
def test_two_builds_in_two_directories_give_the_same_bytes(made):
    for name in ("Mixed", "Three"):
        said = made.run("verify_rebuild", "--config", f"model={name}")
        assert "differ" not in said.replace("nothing differs", ""), said
        assert re.search(r"safetensors", said)


@pytest.mark.parametrize("mode", ["hidden_avg", "hidden_last", "cheap_embed", "uniform_random"])
def test_every_gate_mode_gives_the_same_bytes_twice(made, tmp_path, mode):
    moe = within(MOE | {"gate_mode": mode}, made / "m")
    one, two = (build(moe, tmp_path / name, 7) for name in ("one", "two"))
    assert digests(one) == digests(two)
    assert {"config.json", "tokenizer.model", "mergekit_moe_config.yml"} < set(digests(one))


def test_the_seed_decides_what_is_drawn_and_is_in_the_recipe_of_nothing_else(made, tmp_path):
    drawn = within(MOE | {"gate_mode": "random"}, made / "m")
    one, two = (build(drawn, tmp_path / f"{seed}", seed) for seed in (1, 2))
    assert digests(one)["model.safetensors"] != digests(two)["model.safetensors"]
    prompted = within(MOE, made / "m")
    one, two = (build(prompted, tmp_path / f"p{seed}", seed) for seed in (1, 2))
    assert digests(one) == digests(two)
    assert record(made, "results/Three/safetensors")["recipe"]["options"]["random_seed"] == 5
    assert "random_seed" not in record(made, "results/Mixed/safetensors")["recipe"]["options"]


def test_it_is_the_model_that_mergekit_moe_writes_in_the_names_that_people_publish(made, tmp_path):
    """mergekit 0.1.5 stacks a Mixtral's experts, and llama.cpp's converter cannot map these."""
    import torch

    moe = within(MOE, made / "m")
    ours, config, theirs = build(moe, tmp_path / "o"), tmp_path / "moe.yaml", tmp_path / "theirs"
    config.write_text(yaml.safe_dump(moe))
    command = [Path(sys.executable).with_name("mergekit-moe"), config, theirs, "--device", "cpu"]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    stacked = load_file(theirs / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in stacked, "then save_experts can go"
    names = load_file(ours / "model.safetensors")
    assert "model.layers.0.block_sparse_moe.experts.1.w2.weight" in names
    for layer in ("model.layers.0", "model.layers.1"):
        theirs_are = stacked[f"{layer}.mlp.gate.weight"]
        assert torch.equal(names[f"{layer}.block_sparse_moe.gate.weight"], theirs_are), layer
    assert torch.equal(logits(ours), logits(theirs))


def test_experts_that_are_all_the_base_model_say_what_it_says(made, tmp_path):
    import torch

    same = [{"source_model": "./m/base"}] * 3
    moe = within(MOE | {"gate_mode": "random", "experts": same}, made / "m")
    found = logits(build(moe, tmp_path / "same"))
    assert torch.allclose(found, logits(made / "m/base"), atol=1e-4)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> Path:
    """Three models of each kind that mergekit-moe takes: llama, tied, qwen2, qwen3."""
    import torch

    root = tmp_path_factory.mktemp("kinds")
    for kind in ("llama", "tied", "qwen2", "qwen3"):
        for seed, name in enumerate(("base", "code", "prose")):
            near = root / kind / "base" if seed else None
            model = make_llama(root / kind / name, seed=seed, near=near, tied=kind == "tied")
            make_bpe(model)
            if kind.startswith("qwen"):
                config = json.loads((model / "config.json").read_text())
                config |= {"model_type": kind, "architectures": [f"Q{kind[1:]}ForCausalLM"]}
                (model / "config.json").write_text(json.dumps(config))
                tensors = load_file(model / "model.safetensors")
                for layer in range(2):
                    here = f"model.layers.{layer}.self_attn."
                    for part, width in (("q", 256), ("k", 128), ("v", 128)):
                        if kind == "qwen2":
                            tensors[f"{here}{part}_proj.bias"] = torch.zeros(width).bfloat16()
                        elif part != "v":
                            tensors[f"{here}{part}_norm.weight"] = torch.ones(64).bfloat16()
                save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return root


SHARED = [{"source_model": "./m/base", "positive_prompts": ["a"], "residual_scale": 0.1}]


@pytest.mark.parametrize(
    ("kind", "shared", "architecture"),
    [
        ("tied", None, "MixtralForCausalLM"),
        ("llama", SHARED, "Qwen2MoeForCausalLM"),
        ("qwen2", SHARED, "Qwen2MoeForCausalLM"),
        ("qwen3", None, "Qwen3MoeForCausalLM"),
    ],
)
def test_of_every_kind_the_mixture_has_just_the_tensors_that_are_foreseen(
    kinds, tmp_path, kind, shared, architecture
):
    moe = within(MOE | {"gate_mode": "cheap_embed"}, kinds / kind)
    if shared:
        moe["shared_experts"] = within({"": shared}, kinds / kind)[""]
    output = build(moe, tmp_path / "out")
    done = run("check_moe.py", "--config", tmp_path / "out.yaml", "--output", output)
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "config.json").read_text())["architectures"] == [architecture]
    assert choose(moe, ["llama" if kind == "tied" else kind] * 4).architecture == architecture
    assert logits(output).isfinite().all()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("mode", ["hidden", "random"])
def test_the_architecture_is_the_one_that_mergekit_takes(kinds, kind, shared, prompts, mode):
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import select_output_arch

    expert = {"source_model": "./m/base"} | ({"positive_prompts": ["a"]} if prompts else {})
    for architecture in (None, "mixtral", "deepseek", "qwen", "Qwen3 MoE"):
        moe = within(MOE | {"gate_mode": mode, "shared_experts": [expert] * shared}, kinds / kind)
        moe |= {"architecture": architecture} if architecture else {}
        try:
            wanted = select_output_arch(MoEMergeConfig.model_validate(moe), MergeOptions()).name()
        except SystemExit:
            wanted = None
        try:
            found = choose(moe, [kind] * 4).name
        except ValueError as error:
            found = "DeepSeek MoE" if "DeepSeek MoE of it" in str(error) else None
        assert found == wanted, moe


def test_the_keys_and_architectures_are_mergekits():
    from mergekit.moe import ALL_OUTPUT_ARCHITECTURES
    from mergekit.moe.config import Expert, MoEMergeConfig

    assert set(MOE_KEYS) == set(MoEMergeConfig.model_fields)
    assert set(EXPERT_KEYS) == set(Expert.model_fields)
    assert [each.name() for each in ALL_OUTPUT_ARCHITECTURES] == [each.name for each in OUTPUTS]


def test_models_that_do_not_fit_are_refused_before_anything_is_built(made, tmp_path):
    project = Project(tmp_path, {"models": {"M": {"moe": MOE | {"base_model": "./m/base"}}}})
    make_models(tmp_path / "m", "code", "prose")
    config = json.loads((tmp_path / "m/prose/config.json").read_text())
    for key, value in (("intermediate_size", 640), ("hidden_size", 320), ("num_hidden_layers", 3)):
        text = json.dumps(config | {key: value})
        (tmp_path / "m/prose/config.json").write_text(text)
        with pytest.raises(UserError, match=f"must have one {key}, not .* and "):
            load(project.config, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("nan", "NaN or Inf in the merged tensor model.layers.1.block_sparse_moe.experts.1.w3"),
        (
            "lost",
            "the mixture's tensor model.layers.1.block_sparse_moe.experts.1.w3.weight is miss",
        ),
        ("shape", "experts.1.w3.weight is (512, 128), (512, 256) by its models"),
        ("extra", "the mixture's tensor model.extra is (1,), no model has it"),
    ],
)
def test_a_damaged_mixture_is_an_error(made, tmp_path, change, said):
    import torch

    moe, output = within(MOE, made / "m"), tmp_path / "out"
    (tmp_path / "moe.yaml").write_text(yaml.safe_dump(moe))
    shutil.copytree(made / "results/Mixed/safetensors", output)
    tensors = load_file(output / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.1.w3.weight"
    if change == "nan":
        tensors[name][3, 4] = torch.nan
    elif change == "lost":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:, :128].contiguous()
    else:
        tensors["model.extra"] = torch.ones(1)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    done = run("check_moe.py", "--config", tmp_path / "moe.yaml", "--output", output)
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1], done.stderr


def test_prompts_that_are_too_similar_are_noted(made, tmp_path):
    long = "The library keeps what it reads in memory until it is closed"
    alike = [{"source_model": f"./m/{name}"} for name in ("code", "prose")]
    for expert, prompt in zip(alike, (long, f"{long}."), strict=True):
        expert["positive_prompts"] = [prompt]
    moe = MOE | {"gate_mode": "hidden_avg", "experts": alike}
    output = build(within(moe, made / "m"), tmp_path / "out")
    words = ("--config", tmp_path / "out.yaml", "--output", output, "--json", tmp_path / "j.json")
    done = run("check_moe.py", *words)
    assert "In 2 layers the gates are nearly alike: the prompts may be too similar." in done.stdout
    assert json.loads((tmp_path / "j.json").read_text())["alike"] == [0, 1]
    assert record(made, "results/Mixed/safetensors")["notes"]["alike"] == []


def test_experts_on_the_hub_are_locked_with_the_models(tmp_path):
    experts = [{"source_model": "c/d@main"}, {"source_model": "Other"}]
    moe = {"base_model": "a/b", "gate_mode": "random", "experts": experts}
    config = {"models": {"M": {"moe": moe}, "Other": {"source": "e/f"}}}
    found = hub_sources(load(config, tmp_path)[0], ["M"])
    assert {source.ref for source in found} == {"a/b", "c/d@main", "e/f"}


def test_a_mixture_in_a_file_is_the_mixture_as_if_it_stood_in_the_config(made, tmp_path):
    shutil.copytree(made / "m", tmp_path / "m")
    (tmp_path / "moe.yml").write_text(yaml.safe_dump(MOE))
    models = {"M": {"moe": "moe.yml"}, "Base": {"source": "./m/base"}}
    inline = {"models": models | {"M": {"moe": MOE}}}
    assert load({"models": models}, tmp_path)[0] == load(inline, tmp_path)[0]
    (tmp_path / "moe.yml").write_text(yaml.safe_dump(MOE | {"gate_mode": "x"}))
    with pytest.raises(UserError, match="^models.M.moe: moe.yml: gate_mode: 'x' is no gate mode"):
        load({"models": models}, tmp_path)


def test_preflight_says_what_a_mixture_will_be(made):
    said = made.run("preflight", check=False)  # there may be no hub to publish to
    assert re.search(r"ok +Mixed +its 3 models fit together", said)
    assert re.search(r"ok +Mixed +MixtralForCausalLM: known to the converter", said)
    assert "models.Three.gguf.imatrix.format" in said, "of mixtures gguf counts each expert's"


@pytest.mark.slow
def test_on_either_text_it_is_better_than_the_expert_of_the_other(demo, toolchain, tmp_path):
    """Of the embedded default's models, with gates of a few prompts."""
    shutil.copytree(demo, tmp_path / "m")
    measured = {"corpus": "code", "also": ["prose"], "chunks": 12}
    forms = {"gguf": {"quants": ["Q4_K_M"]}, "evaluate": measured}
    code = ["def main(argv):", "for name, value in items:", "import os", "return self._value"]
    prose = ["The program is free software", "This module defines a class"]
    prose += ["You should have received a copy", "the value of the argument"]
    experts = [
        {"source_model": "Code", "positive_prompts": code},
        {"source_model": "Prose", "positive_prompts": prose},
    ]
    moe = {"base_model": "./m/base", "dtype": "bfloat16", "experts": experts}
    models = {name: {"source": f"./m/{name.lower()}", **forms} for name in ("Code", "Prose")}
    models["Mixed"] = {"moe": moe, **forms}
    corpora = {name: {"path": f"m/text/heldout-{name}.txt"} for name in ("code", "prose")}
    project = Project(tmp_path, {"corpora": corpora, "models": models})
    project.build()

    def perplexity(model: str, place: str = "") -> float:
        file = project / f"results/{model}/evaluation/{place}Q4_K_M.json"
        return json.loads(file.read_text())["perplexity"]["mean"]

    assert perplexity("Code") < perplexity("Mixed") < 0.9 * perplexity("Prose")
    assert perplexity("Prose", "prose/") < perplexity("Mixed", "prose/")
    assert perplexity("Mixed", "prose/") < 0.9 * perplexity("Code", "prose/")

"""scripts/merge.py on tiny Llamas, mergekit in this process (its import takes seconds)."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import merge
from lib.errors import UserError
from tiny_models import make_bpe, make_llama, make_sentencepiece

SCRIPTS = Path(merge.__file__).parent
TWO = ["code", "prose"]
METHODS = {
    "linear": {"models": {"code": {"weight": 0.3}, "prose": {"weight": 0.7}}},
    "slerp": {"base": "code", "models": TWO, "parameters": {"t": [0, 0.5, 1]}},
    "nuslerp": {"models": {"code": {"weight": 1}, "prose": {"weight": 2}}},
    "multislerp": {"models": {"code": {"weight": 1}, "prose": {"weight": 2}}},
    "karcher": {"models": TWO},
    "task_arithmetic": {"base": "base", "models": TWO, "parameters": {"weight": 0.5}},
    "ties": {"base": "base", "models": TWO, "parameters": {"weight": 0.5, "density": 0.5}},
    "dare_ties": {"base": "base", "models": TWO, "parameters": {"weight": 0.5, "density": 0.5}},
    "dare_linear": {"base": "base", "models": TWO, "parameters": {"weight": 0.5, "density": 0.5}},
    "breadcrumbs": {"base": "base", "models": TWO, "parameters": {"weight": 0.5, "density": 0.9}},
    "breadcrumbs_ties": {"base": "base", "models": TWO, "parameters": {"weight": 1, "gamma": 0.01}},
    "della": {"base": "base", "models": TWO, "parameters": {"weight": 0.5, "epsilon": 0.1}},
    "della_linear": {"base": "base", "models": TWO, "parameters": {"weight": 0.5, "density": 0.6}},
    "model_stock": {"base": "base", "models": TWO},
    "sce": {"base": "base", "models": TWO, "parameters": {"select_topk": 0.5}},
    "ram": {"base": "base", "models": TWO},
    "ramplus_tl": {"base": "base", "models": TWO},
    "arcee_fusion": {"base": "base", "models": ["base", "code"]},
    "nearswap": {"base": "base", "models": ["code"], "parameters": {"t": 0.001}},
    "passthrough": {"models": ["code"]},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """base; code, prose: like it; extra: other tokens; wide: another shape; spm: sentencepiece."""
    root = tmp_path_factory.mktemp("models")
    small = {"hidden": 64, "ffn": 128, "vocab": 300}
    base = make_llama(root / "base", seed=1, **small)
    make_bpe(base, 300)
    for name, seed in (("code", 2), ("prose", 3)):
        make_bpe(make_llama(root / name, seed=seed, near=base, **small), 300)
    extra = make_llama(root / "extra", seed=4, **{**small, "vocab": 308})
    make_bpe(extra, 308, tuple(f"<|new{i}|>" for i in range(8)))
    make_bpe(make_llama(root / "wide", seed=5, **{**small, "ffn": 192}), 300)
    spm = make_llama(root / "spm", seed=6, hidden=64, ffn=128, vocab=512)
    make_sentencepiece(spm)
    return root


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    """run(config, *options): make the merge in a directory of its own, which is returned."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    count = 0

    def run(config: dict | str, *options: str, seed: int = 7) -> Path:
        nonlocal count
        count += 1
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        file, output = tmp_path / f"{count}.yaml", tmp_path / f"merge{count}"
        file.write_text(text.replace("@", f"{models}/"))
        arguments = ["--config", file, "--output", output, "--seed", seed, *options]
        merge.run(merge.command_line().parse_args(map(str, arguments)))
        return output

    return run


def config_of(method: str, spec: dict) -> dict:
    """A mergekit configuration; `@name` stands for a model's directory."""
    config: dict = {"merge_method": method, "dtype": "bfloat16"}
    if "base" in spec:
        config["base_model"] = "@" + spec["base"]
    if "parameters" in spec:
        config["parameters"] = spec["parameters"]
    own = (
        spec["models"]
        if isinstance(spec["models"], dict)
        else {name: {} for name in spec["models"]}
    )
    config["models"] = [{"model": "@" + name, "parameters": p} for name, p in own.items()]
    return config


def digests(directory: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()
    }


def tensors(directory: Path) -> dict:
    from safetensors.torch import load_file

    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


SCE = config_of("sce", METHODS["sce"])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges_twice_to_the_same_bytes(run, method):
    config = config_of(method, METHODS[method])
    first, second = digests(run(config)), digests(run(config))
    assert first == second
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(first)
    assert "README.md" not in first


def test_the_list_of_methods_tried_is_mergekits():
    from mergekit.merge_methods import registered_methods

    assert set(METHODS) == {m.spec.name for m in registered_methods()}


def test_a_method_that_draws_gives_other_weights_for_another_seed(run):
    config = config_of("dare_ties", METHODS["dare_ties"])
    one, two = digests(run(config, seed=1)), digests(run(config, seed=2))
    assert one["model.safetensors"] != two["model.safetensors"]
    assert one["config.json"] == two["config.json"]


def test_linear_weights_are_those_that_the_user_wrote(run, models):
    merged = tensors(run(config_of("linear", METHODS["linear"])))
    code, prose = tensors(models / "code"), tensors(models / "prose")
    for name, tensor in merged.items():
        wanted = 0.3 * code[name].float() + 0.7 * prose[name].float()
        assert (tensor.float() - wanted).abs().max() < 0.02, name


@pytest.mark.slow
def test_two_processes_in_two_directories_write_the_same_bytes(models, tmp_path):
    """union adds tokens in the order of a hash map, and with no base_model mergekit takes the
    tokenizer of whichever model a set yields first: both differ from process to process."""
    config = """
        merge_method: linear
        models:
        - {model: ./base, parameters: {weight: 1}}
        - {model: ./extra, parameters: {weight: 1}}
        tokenizer_source: union
        dtype: float32
    """
    found = []
    for place, seed in (("a", "11"), ("b/c", "12")):
        where = tmp_path / place
        where.mkdir(parents=True)
        for name in ("base", "extra"):
            (where / name).symlink_to(models / name)
        (where / "merge.yaml").write_text(config)
        command = [sys.executable, SCRIPTS / "merge.py", "--config", "merge.yaml", "--seed", "1"]
        subprocess.run(
            [*command, "--output", "out"],
            cwd=where,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        found.append(digests(where / "out"))
    assert found[0] == found[1]


def test_shards_are_as_small_as_asked_and_the_index_names_them(run):
    output = run(SCE, "--shard-size", "100k")
    index = json.loads((output / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert set(index.values()) == {f.name for f in output.glob("*.safetensors")}


def test_provenance_is_the_users_own_text_and_no_path_is_left_anywhere(run, models, tmp_path):
    mine = "# my merge\nmerge_method: sce\nbase_model: org/base\n"
    (tmp_path / "mine.yaml").write_text(mine)
    output = run(SCE, "--verbatim", str(tmp_path / "mine.yaml"))
    assert (output / "mergekit_config.yml").read_text() == mine
    for file in output.iterdir():
        assert str(models).encode() not in file.read_bytes(), file.name


def test_slices_of_two_models_are_stacked_in_order(run, models):
    ranges = (("code", 0, 2), ("prose", 1, 2), ("code", 0, 1))
    slices = [{"sources": [{"model": "@" + m, "layer_range": [a, b]}]} for m, a, b in ranges]
    output = run({"merge_method": "passthrough", "slices": slices, "dtype": "bfloat16"})
    assert json.loads((output / "config.json").read_text())["num_hidden_layers"] == 4
    merged = tensors(output)
    for layer, (model, old) in enumerate((("code", 0), ("code", 1), ("prose", 1), ("code", 0))):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert merged[name.format(layer)].equal(tensors(models / model)[name.format(old)])


def test_union_tokenizer_has_the_tokens_of_all_models_and_rows_for_them(run, models):
    config = {**SCE, "models": [{"model": "@extra"}], "tokenizer_source": "union"}
    output = run(config)
    tokens = json.loads((output / "tokenizer.json").read_text())
    names = set(tokens["model"]["vocab"]) | {t["content"] for t in tokens["added_tokens"]}
    assert {f"<|new{i}|>" for i in range(8)} <= names
    rows = tensors(output)["model.embed_tokens.weight"].shape[0]
    assert rows == json.loads((output / "config.json").read_text())["vocab_size"] == len(names)


def test_models_of_other_tokenizers_merge_by_mergekits_own_key_without_tokensurgeon(run, models):
    config = config_of("ties", METHODS["ties"] | {"models": ["code", "spm"]})
    with pytest.raises(UserError, match="Tensor size mismatch for .*tokenizer: {source: base}"):
        run(config)
    for source, rows in (("base", 300), ("@spm", 512)):
        merged = tensors(run(config | {"tokenizer_source": source}))
        assert merged["model.embed_tokens.weight"].shape[0] == rows


def test_chat_template_is_kept_and_so_is_the_sentencepiece_model(run, models):
    config = {
        "merge_method": "passthrough",
        "models": [{"model": "@spm"}],
        "chat_template": "chatml",
    }
    output = run(config)
    assert "<|im_start|>" in (output / "chat_template.jinja").read_text()
    assert (output / "tokenizer.model").read_bytes() == (
        models / "spm" / "tokenizer.model"
    ).read_bytes()


def test_out_dtype_is_the_dtype_of_the_weights_and_of_the_config(run):
    output = run({**SCE, "dtype": "float32", "out_dtype": "float16"})
    assert {str(t.dtype) for t in tensors(output).values()} == {"torch.float16"}
    assert json.loads((output / "config.json").read_text())["dtype"] == "float16"


def test_a_lora_is_merged_into_its_base(run, models, tmp_path):
    import torch
    from safetensors.torch import save_file

    rank, adapter = 4, tmp_path / "adapter"
    adapter.mkdir()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["up_proj"],
        "base_model_name_or_path": "base",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    a, b = torch.randn(rank, 64), torch.randn(128, rank)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    zero = {
        key.replace("1", "0", 1).format(x): torch.zeros_like(t) for x, t in (("A", a), ("B", b))
    }
    save_file(
        {key.format("A"): a, key.format("B"): b, **zero}, adapter / "adapter_model.safetensors"
    )
    config = {"merge_method": "passthrough", "models": [{"model": f"@base+{adapter}"}]}
    output = run({**config, "dtype": "float32"})
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = tensors(models / "base")[name].float() + 2 * b @ a
    assert (tensors(output)[name].float() - wanted).abs().max() < 0.1
    assert {f.suffix for f in output.iterdir()} <= {".json", ".safetensors", ".yml"}
    assert not [f for f in output.iterdir() if f.is_dir()]


WRONG = {
    "a parameter is misspelled": (
        {**SCE, "parameters": {"select_topkk": 0.5}},
        "parameters.select_topkk: sce has no such parameter; did you mean select_topk?",
    ),
    "weight is missing": (
        {**SCE, "merge_method": "ties", "parameters": {"density": 0.5}},
        "Missing required parameter weight for",
    ),
    "t is missing": (
        {**SCE, "merge_method": "nearswap", "models": [{"model": "@code"}], "parameters": {}},
        "parameter t",
    ),
    "base_model is missing": (
        {k: v for k, v in SCE.items() if k != "base_model"},
        "Merge method requires a base input",
    ),
    "shapes differ": ({**SCE, "models": [{"model": "@wide"}]}, "mlp."),
    "vocabularies differ": ({**SCE, "models": [{"model": "@extra"}]}, "tokenizer configuration"),
    "no such method": ({**SCE, "merge_method": "soup"}, "soup"),
    "no such directory": (
        {**SCE, "base_model": "./nowhere"},
        "nowhere: there is no such directory",
    ),
    "a range is no range": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "@code"}]}]},
        "slices.0.sources.0.layer_range: Field required",
    ),
    "no such chat template": ({**SCE, "chat_template": "chatmi"}, "Invalid chat template: chatmi"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_explained_in_one_line(run, case):
    config, words = WRONG[case]
    with pytest.raises(UserError) as caught:
        run(config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_replace_paths_in_messages(models, tmp_path, monkeypatch):
    config = {**SCE, "base_model": "./nowhere", "models": [{"model": str(models / "code")}]}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "names.json").write_text(json.dumps({"./nowhere": "org/base@main"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # or it would start itself again with that
    command = "merge.py --config m.yaml --output out --seed 1 --names names.json"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(UserError) as caught:
        merge.main()
    assert str(caught.value) == "org/base@main: there is no such directory"


def test_a_parameter_of_another_method_is_only_noted(run, capsys):
    run({**SCE, "parameters": {"select_topk": 0.5, "density": 0.3}})
    assert "parameters.density has no effect" in capsys.readouterr().out


@pytest.fixture
def merged(run):
    return run(SCE, "--shard-size", "100k")


def change(directory: Path, name: str, edit) -> None:
    """Put edit(tensor) for the tensor `name` into its shard, None taking it away."""
    from safetensors.torch import load_file, save_file

    for file in directory.glob("*.safetensors"):
        content = load_file(file)
        if name in content:
            content[name] = edit(content[name].clone())
            save_file({k: v for k, v in content.items() if v is not None}, file)


def set_nan(tensor):
    tensor.view(-1)[3] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (set_nan, "NaN or Inf in the merged tensor model.layers.1.mlp.up_proj.weight"),
        (lambda t: t[:-1].contiguous(), "model.layers.1.mlp.up_proj.weight is [127, 64]"),
        (lambda t: None, "lacks model.layers.1.mlp.up_proj.weight"),
    ],
    ids=["nan", "shape", "missing"],
)
def test_a_bad_tensor_is_named(merged, edit, words):
    change(merged, "model.layers.1.mlp.up_proj.weight", edit)
    with pytest.raises(UserError) as caught:
        merge.check_output(merged)
    assert words in str(caught.value)


def test_a_lost_shard_is_named(merged):
    next(merged.glob("model-00002-of-*.safetensors")).unlink()
    with pytest.raises(UserError, match="model-00002-of-"):
        merge.check_output(merged)


def test_pickles_are_merged_only_with_permission(run, models, tmp_path):
    import torch

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in (models / "code").glob("*.json"):
        (pickled / file.name).write_bytes(file.read_bytes())
    torch.save(tensors(models / "code"), pickled / "pytorch_model.bin")
    config = {
        "merge_method": "passthrough",
        "models": [{"model": str(pickled)}],
        "dtype": "bfloat16",
    }
    with pytest.raises(UserError, match="allow_pickle: true"):
        run(config)
    output = run(config, "--allow-pickle")
    assert {f.suffix for f in output.iterdir()} <= {".json", ".safetensors", ".yml"}
    assert all(t.equal(tensors(models / "code")[n]) for n, t in tensors(output).items())

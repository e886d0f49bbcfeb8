"""From the config to what is locked, what the cards say and what is published where."""

import hashlib
import json
from types import SimpleNamespace

import pytest
from hubtest import ok

from lib import recipe as recipes
from lib.config import load
from lib.license import front_matter
from lib.lock import Entry, File, Lock, Wanted
from lib.publishing import card_options, card_paths, license_note, manifest
from lib.references import hub_sources

RAW = {
    "corpora": {
        "calibration": {"hub": "acme/text", "file": "a.parquet", "revision": "v2"},
        "evaluation": {"path": "evaluation.txt"},
        "unused": {"hub": "acme/unused", "file": "x.txt"},
    },
    "models": {
        "Inner": {
            "merge": {
                "merge_method": "linear",
                "models": [
                    {"model": "acme/base@v1", "parameters": {"weight": 1}},
                    {"model": "acme/base@v1+acme/lora", "parameters": {"weight": 1}},
                ],
            },
        },
        "Mix": {
            "merge": {
                "merge_method": "sce",
                "base_model": "Inner",
                "models": [{"model": "./tuned"}],
            },
            "random_seed": 7,
            "gguf": {
                "quants": ["Q4_K_M", "Q8_0"],
                "imatrix": {"corpus": "calibration", "chunks": 40},
                "split_max_size": "1M",
            },
            "exl2": {"bits": [5, 4.25]},
            "evaluate": {"corpus": "evaluation"},
            "publish": {
                "gguf": "acme/Mix-GGUF",
                "exl2": "acme/Mix-exl2",
                "safetensors": "acme/Mix",
                "max_kld": {"Q4_K_M": 0.05, "*": 0.02},
                "max_file_size": "3M",
                "quantized_by": "alice",
            },
        },
    },
}  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluation.txt").write_text("text")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned/config.json").write_text("{}")
    (tmp_path / "tuned/model.safetensors").write_bytes(b"")
    (tmp_path / "tuned/README.md").write_text("---\nlicense: llama3.3\n---\n")
    return load(RAW, tmp_path)[0]


def locked(ref: str, license: str) -> Entry:
    return Entry(ref, "model", "c" * 40, {"m": File("a" * 64, 1)}, {"license": license})


@pytest.fixture
def lock():
    refs = {"acme/base@v1": "apache-2.0", "acme/lora": "apache-2.0"}
    return Lock({("model", ref): locked(ref, license) for ref, license in refs.items()})


def artifacts(name: str = "Mix") -> dict[str, SimpleNamespace]:
    """What the planner declares of the model, as far as it is asked here."""
    found = {}

    def add(path: str, rule: str, inputs: tuple = (), intermediate: bool = False) -> None:
        path = f"results/{name}/{path}"
        made = SimpleNamespace(path=path, rule=rule, inputs=dict.fromkeys(inputs), digest="d")
        made.intermediate = intermediate
        found[path] = made

    add("safetensors", "merge", intermediate=True)
    add(f"gguf/{name}-BF16.gguf", "convert", intermediate=True)
    add("imatrix.dat", "imatrix")
    for quant in ("Q4_K_M", "Q8_0"):
        add(f"gguf/{name}-{quant}.gguf", "quantize", ("gguf", "imatrix"))
        add(f"shards/{quant}", "split")
        add(f"evaluation/{quant}.json", "evaluate")
    add("exl2/measurement.json", "exl2_measure")
    for bits in ("5.0", "4.25"):
        add(f"exl2/{bits}bpw", "exl2_quantize")
        add(f"evaluation/{bits}bpw.json", "exl2_evaluate")
    add("report/quality.csv", "report")
    for kind in ("README.gguf.md", "README.exl2.md", "README.safetensors.md"):
        add(kind, "card")
    return found


def test_exactly_what_a_config_uses_is_locked(config):
    assert hub_sources(config) == [
        Wanted("acme/base@v1"),
        Wanted("acme/lora"),
        Wanted("acme/text@v2", "dataset", "a.parquet"),
    ]
    assert hub_sources(config, ["Inner"]) == [Wanted("acme/base@v1"), Wanted("acme/lora")]


def test_repositories_are_laid_out_as_people_do_it(config):
    found = manifest(config, {"Mix": artifacts().values(), "Inner": []})
    gguf, exl2, full = found["repos"]
    names = {file["name"]: file for file in gguf["branches"]["main"]}
    assert set(names) == {
        "Mix-Q4_K_M.gguf", "Mix-Q8_0.gguf", "imatrix.dat", "README.md", "quality.svg",
    }  # fmt: skip
    assert names["Mix-Q8_0.gguf"]["shards"] == "results/Mix/shards/Q8_0"
    assert gguf["max_file_size"] == 3_000_000 and gguf["repo"] == "acme/Mix-GGUF"
    assert set(gguf["recipes"]) == {"Mix-safetensors", "Mix-BF16.gguf"}
    assert full["recipes"] == {} and set(exl2["recipes"]) == {"Mix-safetensors"}
    assert set(exl2["branches"]) == {"main", "5_0", "4_25"}
    main = {file["name"]: file["artifact"] for file in exl2["branches"]["main"]}
    assert main["measurement.json"] and main["README.md"] == "results/Mix/README.exl2.md"
    files = [(file["artifact"], file["name"]) for file in full["branches"]["main"]]
    assert files == [
        ("results/Mix/safetensors", ""),
        ("results/Mix/README.safetensors.md", "README.md"),
    ]
    limits = {form["form"]: form["max_kld"] for form in found["forms"]}
    assert limits == {"Q4_K_M": 0.05, "Q8_0": 0.02, "5.0bpw": 0.02, "4.25bpw": 0.02}
    assert all(form["evaluation"].endswith(f"{form['form']}.json") for form in found["forms"])


def test_plan_has_a_line_where_the_licenses_of_the_tree_differ(config, lock):
    note = license_note(config, lock, "Mix")
    assert note.startswith("Mix: license: other")
    for part in ("acme/base@v1: apache-2.0", "acme/lora: apache-2.0", "./tuned: llama3.3"):
        assert part in note
    config.models["Mix"].publish.license = "llama3.3"
    assert license_note(config, lock, "Mix").startswith("Mix: license: llama3.3 as the config says")


def test_card_written_from_the_records_passes_the_gates_of_publishing(config, lock, workdir):
    """describe_card.py, card.py and publish.py together, on records as builds leave them."""
    here = workdir.path
    forms = {"Q4_K_M": 2_000_000, "Q8_0": 4_000_000}

    def record(artifact: str, step: str, content: bytes | dict, **more) -> None:
        path = here / artifact
        files = {}
        if isinstance(content, dict):
            for name, data in content.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
                files[name] = [len(data), hashlib.sha256(data).hexdigest()]
            size, sha = sum(len(d) for d in content.values()), "s"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            size, sha = len(content), hashlib.sha256(content).hexdigest()
        recipe = {"step": step, "options": {}, "inputs": {}, "tools": {}} | more.pop("recipe", {})
        data = {"quantmill": recipes.SCHEMA, "artifact": artifact, "digest": "d", "recipe": recipe}
        data |= {"bytes": size, "sha256": sha, "inputs": {}, "files": files, "notes": {}}
        recipes.write_json(here / recipes.path_of(artifact), data | more)

    tools, made_from = {"llama.cpp": "b10605"}, {"gguf": "d", "imatrix": "d", "model": "d"}
    merged = {"recipe": {"tools": {"mergekit": "0.1.5"}}}
    record("results/Mix/safetensors", "merge", {"model.safetensors": b"w"}, **merged)
    converted = {"options": {"outtype": "bf16"}, "inputs": made_from, "tools": tools}
    record("results/Mix/gguf/Mix-BF16.gguf", "convert", b"bf16", recipe=converted)
    measured = {"options": {"context": 512, "chunks": 40}, "tools": tools}
    calibration = {"corpus": "f" * 64}
    record("results/Mix/imatrix.dat", "imatrix", b"m", recipe=measured, inputs=calibration)
    for form, size in forms.items():
        options = {"options": {"type": form}, "inputs": made_from, "tools": tools}
        record(f"results/Mix/gguf/Mix-{form}.gguf", "quantize", bytes(size), recipe=options)
        shards = {f"Mix-{form}-0000{i}-of-00002.gguf": bytes(size // 2) for i in (1, 2)}
        record(f"results/Mix/shards/{form}", "split", shards)
        figures = {"kld": {"mean": 0.01, "error": 0.001}, "corpus": "evaluation"}
        record(f"results/Mix/evaluation/{form}.json", "evaluate", json.dumps(figures).encode())
    record("results/Mix/report/quality.svg", "report", b"<svg/>")

    made = {path: a for path, a in artifacts().items() if "exl2" not in path}
    by_form = {f: made[f"results/Mix/gguf/Mix-{f}.gguf"] for f in (*forms, "BF16")}
    about = card_options(config, lock, "Mix", ["gguf"], by_form)
    described = {f: {"file": a.path, "rule": a.rule} for f, a in by_form.items()}
    options = {"model": "Mix", "weights": "results/Mix/safetensors", "forms": described}
    wanted = here / "wanted.json"
    inputs = {f"form {form}": [by_form[form].path, "d"] for form in forms}
    inputs |= {f"shards {form}": [f"results/Mix/shards/{form}", "d"] for form in forms}
    recipe = {"options": options | {"about": about}}
    wanted.write_text(json.dumps({"recipe": recipe, "inputs": inputs}))
    described = json.loads(ok(workdir.run("describe_card.py", wanted))) | {"tokenizer": None}
    (here / "about.json").write_text(json.dumps(described))
    entries = [
        {"form": form, "family": "gguf", "file": by_form[form].path, "bytes": size}
        | {"evaluation": f"results/Mix/evaluation/{form}.json"}
        for form, size in forms.items()
    ]
    entries.append(
        {"form": "BF16", "family": "gguf", "quantized": False}
        | {"file": by_form["BF16"].path, "bytes": 4}
    )
    parameters = {"model": "Mix", "parameters": 4_000_000}
    (here / "forms.json").write_text(json.dumps(parameters | {"forms": entries}))
    given = ("--forms", "forms.json", "--about", "about.json")
    ok(workdir.run("card.py", *given, "--output", "results/Mix/README.gguf.md"))
    card = (here / "results/Mix/README.gguf.md").read_text()
    record("results/Mix/README.gguf.md", "card", card.encode())
    for part in (
        "| Q8_0 in 2 parts: Mix-Q8_0/ |",
        "[Mix-Q4_K_M.gguf](Mix-Q4_K_M.gguf), also in 2 parts: Mix-Q4_K_M/",
        "mergekit-yaml merge.yaml Mix --random-seed 7",
        "python convert_hf_to_gguf.py Mix --outtype bf16",
        "llama-imatrix --model Mix-BF16.gguf --file calibration.txt --ctx-size 512 --chunks 40",
        "llama-quantize --imatrix imatrix.dat Mix-BF16.gguf Mix-Q4_K_M.gguf Q4_K_M",
        "f" * 64,
        "llama.cpp b10605, mergekit 0.1.5.",
        "- ./tuned: llama3.3",
    ):
        assert part in card, f"the card lacks {part!r}\n{card}"
    assert "Mix-BF16.gguf)" not in card, "the card offers an intermediate that is not published"
    assert front_matter(card)["base_model"] == ["acme/Mix"]

    publishing = manifest(config, {"Mix": artifacts().values()})
    publishing["repos"] = publishing["repos"][:1]
    publishing["forms"] = [form for form in publishing["forms"] if form["form"] in forms]
    (here / "manifest.json").write_text(json.dumps(publishing))
    done = workdir.run("publish.py", "plan", "--manifest", "manifest.json", HF_TOKEN="hf_alice")
    assert not done.stderr, done.stderr
    assert "Mix-Q8_0/Mix-Q8_0-00001-of-00002.gguf" in ok(done)
    assert "recipes/Mix-safetensors.recipe.json" in done.stdout
    assert "Mix-Q8_0.gguf\n" not in done.stdout, "a file over the limit would be uploaded whole"


def test_every_repository_has_a_card_of_its_own(config):
    assert card_paths("Mix", config.models["Mix"]) == {
        "gguf": "results/Mix/README.gguf.md",
        "exl2": "results/Mix/README.exl2.md",
        "safetensors": "results/Mix/README.safetensors.md",
    }
    assert card_paths("Inner", config.models["Inner"]) == {}

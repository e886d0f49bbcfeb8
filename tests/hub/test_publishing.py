"""From the config to what is locked, what the cards say and what is published where."""

import hashlib
import json
from pathlib import Path

import pytest
from hubtest import ok

from lib.config.load import load
from lib.config.repositories import repositories
from lib.hub.license import front_matter
from lib.hub.lock import File, HubSource, Lock, Locked
from lib.hub.references import hub_sources
from lib.planning.graph import Graph
from lib.planning.publishing import card_options, license_note, manifest
from lib.record import recipe as recipes
from lib.record.contents import Contents
from project import leave_wanted

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
    (tmp_path / "tuned/model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    (tmp_path / "tuned/README.md").write_text("---\nlicense: llama3.3\n---\n")
    return load(RAW, tmp_path)[0]


def locked(ref: str, license: str) -> Locked:
    return Locked(ref, "model", "c" * 40, {"m": File("a" * 64, 1)}, {"license": license})


@pytest.fixture
def lock():
    refs = {"acme/base@v1": "apache-2.0", "acme/lora": "apache-2.0"}
    return Lock({("model", ref): locked(ref, license) for ref, license in refs.items()})


def declared(config, lock=None, skip: tuple = ()) -> Graph:
    """What the planner declares; every artifact is wanted by the same recipe."""
    graph = Graph(config, Contents(Path("no such file")), lock or Lock(), skip=skip)
    for artifact in graph:
        artifact.__dict__["digest"] = "d"
    return graph


def described(graph: Graph) -> dict:
    """What the recipes of Mix's report and cards say of its forms."""
    return graph.artifacts("Mix")["results/Mix/report/quality.csv"].options["forms"]


def test_exactly_what_a_config_uses_is_locked(config):
    assert hub_sources(config) == [
        HubSource("acme/base@v1"),
        HubSource("acme/lora"),
        HubSource("acme/text@v2", "dataset", "a.parquet"),
    ]
    assert hub_sources(config, ["Inner"]) == [HubSource("acme/base@v1"), HubSource("acme/lora")]


def test_repositories_are_laid_out_as_people_do_it(config):
    found = manifest(declared(config))
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


def test_the_plan_names_all_licenses_of_a_tree_where_they_differ(config, lock):
    note = license_note(config, lock, "Mix")
    assert note.startswith("other, because")
    for part in ("acme/base@v1: apache-2.0", "acme/lora: apache-2.0", "./tuned: llama3.3"):
        assert part in note
    config.models["Mix"].publish.license = "llama3.3"
    assert license_note(config, lock, "Mix").startswith("llama3.3 as the config says; its models: ")
    assert license_note(config, lock, "Inner") == ""


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
        recipe = {"step": step, "options": {}, "inputs": {}, "sources": {}, "tools": {}, "code": ""}
        recipe |= more.pop("recipe", {})
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

    graph = declared(config, lock, skip=("exl2",))
    families = graph.model("Mix").families
    by_form = families["gguf"].forms
    about = card_options(config, lock, "Mix", families, ("gguf", None))
    told = described(graph)
    options = {"model": "Mix", "weights": "results/Mix/safetensors", "forms": told}
    inputs = {f"form {form}": (by_form[form].path, "d") for form in forms}
    inputs |= {f"shards {form}": (f"results/Mix/shards/{form}", "d") for form in forms}
    wanted = leave_wanted(here / "wanted.json", {"options": options | {"about": about}}, inputs)
    told = json.loads(ok(workdir.run("describe_card.py", wanted))) | {"tokenizer": None}
    (here / "about.json").write_text(json.dumps(told))
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
    ok(workdir.card("forms.json", "about.json", "results/Mix/README.gguf.md"))
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

    publishing = manifest(declared(config, lock))
    publishing["repos"] = publishing["repos"][:1]
    publishing["forms"] = [form for form in publishing["forms"] if form["form"] in forms]
    (here / "manifest.json").write_text(json.dumps(publishing))
    done = workdir.run("publish.py", "plan", "--manifest", "manifest.json", HF_TOKEN="hf_alice")
    assert not done.stderr, done.stderr
    assert "Mix-Q8_0/Mix-Q8_0-00001-of-00002.gguf" in ok(done)
    assert "recipes/Mix-safetensors.recipe.json" in done.stdout
    assert "Mix-Q8_0.gguf\n" not in done.stdout, "a file over the limit would be uploaded whole"


def test_every_repository_has_a_card_of_its_own(config):
    def cards(name: str) -> list[str]:
        return [each.card(name) for each in repositories(config.models[name])]

    assert cards("Mix") == [
        "results/Mix/README.gguf.md",
        "results/Mix/README.exl2.md",
        "results/Mix/README.safetensors.md",
    ]
    assert cards("Inner") == []
    config.models["Mix"].publish.exl2 = "acme/Mix-{form}-exl2"
    assert cards("Mix")[1:3] == [
        "results/Mix/README.exl2.5.0bpw.md",
        "results/Mix/README.exl2.4.25bpw.md",
    ]


@pytest.fixture
def split(config, lock, workdir, monkeypatch):
    """`publish: {exl2: acme/Mix-{form}-exl2}`: both forms, records and cards, the manifest."""
    here = workdir.path
    monkeypatch.chdir(here)
    config.models["Mix"].publish.exl2 = "acme/Mix-{form}-exl2"
    config.models["Mix"].publish.license = "llama3.3"
    config.models["Mix"].publish.gguf = config.models["Mix"].publish.safetensors = None
    graph = declared(config, lock)
    families = graph.model("Mix").families
    forms = families["exl2"].forms

    def record(artifact: str, step: str, content: bytes | dict[str, bytes], **options) -> None:
        members = content if isinstance(content, dict) else {"": content}
        for member, data in members.items():
            path = here / artifact / member if member else here / artifact
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        known = {n: [len(c), hashlib.sha256(c).hexdigest()] for n, c in members.items()}
        size, sha = known.get("", [sum(n for n, _ in known.values()), recipes.digest(known)])
        recipe = {"step": step, "options": options, "inputs": {}, "tools": {"exllamav2": "0.3.2"}}
        recipe |= {"sources": {}, "code": ""}
        files = {} if "" in known else known
        recipes.write(recipes.Record(artifact, recipe, "d", size, sha, files))

    record("results/Mix/exl2/measurement.json", "exl2_measure", b"{}", **MEASURED)
    record("results/Mix/report/quality.svg", "report", b"<svg/>")
    record("results/Mix/report/quality.csv", "report", b"form")
    told = {form: said for form, said in described(graph).items() if form in forms}
    entries = []
    for form in forms:
        content = {"output.safetensors": form.encode() * 99, "config.json": b"{}"}
        bits = float(form.removesuffix("bpw"))
        record(f"results/Mix/exl2/{form}", "exl2_quantize", content, bits=bits, **CONVERTED)
        figures = {"kld": {"mean": 0.01, "error": 0.001}, "corpus": "evaluation"}
        evaluation = f"results/Mix/evaluation/{form}.json"
        record(evaluation, "exl2_evaluate", json.dumps(figures).encode())
        file = {"form": form, "family": "exl2", "file": f"results/Mix/exl2/{form}", "bytes": 400}
        entries.append(file | {"evaluation": evaluation})
    (here / "forms.json").write_text(json.dumps({"model": "Mix", "forms": entries}))
    for repository in repositories(config.models["Mix"]):
        about = card_options(config, lock, "Mix", families, ("exl2", repository.form))
        options = {"model": "Mix", "weights": "results/Mix/safetensors", "forms": told}
        inputs = {f"form {form}": (a.path, "d") for form, a in forms.items()}
        wanted = leave_wanted(here / "wanted.json", {"options": options | {"about": about}}, inputs)
        described_card = json.loads(ok(workdir.run("describe_card.py", wanted)))
        (here / "about.json").write_text(json.dumps(described_card | {"tokenizer": None}))
        card = repository.card("Mix")
        ok(workdir.card("forms.json", "about.json", card))
        record(card, "card", (here / card).read_bytes())
    (here / "manifest.json").write_text(json.dumps(manifest(graph)))
    return here


MEASURED = {"measurement_rows": 16, "measurement_length": 2048}
CONVERTED = {"head_bits": 6, "rows": 100, "length": 2048, "shard_size": 8192}


def test_each_bits_value_gets_a_repository_with_its_files_on_main_and_its_own_card(
    split, workdir, hub
):
    for form, other in (("5.0bpw", "4.25bpw"), ("4.25bpw", "5.0bpw")):
        card = (split / f"results/Mix/README.exl2.{form}.md").read_text()
        name = f"acme/Mix-{form}-exl2"
        assert f"# Mix-{form}-exl2" in card and f"/{name}/tree/main" in card
        assert f"hf download {name} --revision main --local-dir Mix-{form}\n" in card
        assert f"-b {float(form.removesuffix('bpw')):g} -hb 6" in card
        assert other not in card and "acme/Mix-exl2" not in card
    done = workdir.run("publish.py", "push", "--manifest", "manifest.json", HF_TOKEN="hf_alice")
    assert not done.stderr, done.stderr
    ok(done)
    for form in ("5.0bpw", "4.25bpw"):
        repo = hub.repos["model", f"acme/Mix-{form}-exl2"]
        assert set(repo.branches) == {"main"}
        files = repo.files()
        assert files["output.safetensors"] == form.encode() * 99
        assert files["measurement.json"] == b"{}" and files["quality.svg"] == b"<svg/>"
        assert files["README.md"] == (split / f"results/Mix/README.exl2.{form}.md").read_bytes()
        assert {f"recipes/{form}.recipe.json", "recipes/measurement.json.recipe.json"} <= set(files)


def test_one_form_that_is_too_bad_keeps_all_of_them_from_the_hub(split, workdir, hub):
    evaluation = split / "results/Mix/evaluation/4.25bpw.json"
    evaluation.write_text(json.dumps({"kld": {"mean": 0.5}}))
    done = workdir.run("publish.py", "push", "--manifest", "manifest.json", HF_TOKEN="hf_alice")
    assert done.returncode == 1
    assert done.stderr.count("4.25bpw.json: kld.mean is 0.5, over max_kld 0.02") == 1
    assert not hub.requests("^(POST|PUT) ")


def test_the_other_repositories_cards_name_all_of_them(config, lock):
    config.models["Mix"].publish.exl2 = "acme/Mix-{form}-exl2"
    about = card_options(config, lock, "Mix", {}, ("safetensors", None))
    assert about["repos"]["exl2"] == ["acme/Mix-5.0bpw-exl2", "acme/Mix-4.25bpw-exl2"]
    assert "form" not in about


def test_without_exl2_in_this_run_its_repositories_are_left_out(config):
    config.models["Mix"].publish.exl2 = "acme/Mix-{form}-exl2"
    found = manifest(declared(config, skip=("exl2",)))
    assert [repo["repo"] for repo in found["repos"]] == ["acme/Mix-GGUF", "acme/Mix"]

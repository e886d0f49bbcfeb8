"""The model card: true, complete, the same every time; and the license over the whole tree."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hubtest import ok, refused

from lib.hub.license import License, combine, front_matter, of_facts
from lib.record import recipe as recipes
from project import leave_wanted

APACHE, LLAMA = License("apache-2.0"), License("llama3.3")


def test_equal_licenses_pass():
    assert combine({"a/b": APACHE, "c/d": APACHE}).license == APACHE
    assert combine({"a/b": APACHE}).note == ""


@pytest.mark.parametrize("other", [LLAMA, None], ids=["unequal", "missing"])
def test_unequal_or_missing_licenses_are_other_with_all_named(other):
    verdict = combine({"a/b": APACHE, "c/d": other})
    label = other.label if other else "unknown"
    assert verdict.license.id == "other"
    assert verdict.license.name == f"apache-2.0-and-{label}"
    for part in ("a/b: apache-2.0", f"c/d: {label}"):
        assert part in verdict.note


def test_two_different_licenses_called_other_are_not_equal():
    one, two = License("other", "nemotron"), License("other", "yi-license")
    assert combine({"a/b": one, "c/d": one}).license == one
    assert combine({"a/b": one, "c/d": two}).license.name == "nemotron-and-yi-license"


def test_license_of_the_config_is_taken_and_noted_when_the_tree_says_otherwise():
    verdict = combine({"a/b": LLAMA, "c/d": APACHE}, given=APACHE)
    assert verdict.license == APACHE and "a/b: llama3.3" in verdict.note
    assert combine({"a/b": APACHE}, given=APACHE).note == ""


def test_front_matter_of_any_card_is_read():
    assert of_facts(front_matter("---\nlicense: mit\n---\n# x")) == License("mit")
    assert of_facts(front_matter("# no front matter")) is None
    assert front_matter("---\n: [\n---\n") == {}
    assert of_facts({"license": "unknown"}) is None


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def about(tmp_path) -> dict:
    """A merge of two models with two quants, as the planner describes it."""
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return {
        "model": "Mix-8B",
        "merge": {"merge_method": "sce", "base_model": "acme/base"},
        "bases": [
            {"reference": "acme/base", "hub": "acme/base", "commit": "c" * 40}
            | {"license": "apache-2.0", "language": ["en"]},
            {"reference": "acme/tuned@v1", "hub": "acme/tuned", "commit": "d" * 40}
            | {"license": "llama3.3", "language": "de"},
        ],
        "repos": {"gguf": "acme/Mix-8B-GGUF"},
        "publish": {"quantized_by": "alice", "tags": ["demo"]},
        "imatrix": {"file": "results/Mix-8B/imatrix.dat", "corpus": "calibration"}
        | {"sha256": "e" * 64, "chunks": 40, "context": 512},
        "shards": {"Q8_0": [f"Mix-8B-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)]},
        "too_large": ["Q8_0"],
        "commands": {"gguf": ["llama-quantize --imatrix imatrix.dat Mix-8B-BF16.gguf out.gguf"]},
        "versions": {"llama.cpp": "b10605", "mergekit": "0.1.5"},
        "tokenizer": str(directory),
        "plot": "quality.svg",
        "recipes": "recipes",
    }


@pytest.fixture
def forms(tmp_path) -> Path:
    entries = []
    for form, size, kld in (("Q4_K_M", 4.9e9, 0.0313), ("Q8_0", 8.5e9, 0.0012)):
        path = tmp_path / f"{form}.json"
        kinds = {"kld": {"mean": kld, "error": kld / 100, "p99": kld * 9}}
        kinds |= {"perplexity": {"mean": 7.1, "error": 0.05}}
        kinds |= {"same_top": {"mean": 0.93, "error": 0.001}}
        path.write_text(json.dumps({**kinds, "corpus": "evaluation", "context": 512, "chunks": 9}))
        file = f"results/Mix-8B/gguf/Mix-8B-{form}.gguf"
        entry = {"form": form, "family": "gguf", "file": file, "bytes": int(size)}
        entries.append(entry | {"evaluation": str(path)})
    path = tmp_path / "forms.json"
    path.write_text(json.dumps({"model": "Mix-8B", "parameters": int(8e9), "forms": entries}))
    return path


def test_a_card_says_what_the_models_own_weights_solve_also_where_no_form_was_measured(
    workdir, forms, about
):
    (workdir.path / "arc.json").write_text(json.dumps({"score": 0.5, "error": 0.0125}))
    document = json.loads(forms.read_text()) | {"harness": {"arc": "arc.json"}}
    for entries in (document["forms"], []):
        forms.write_text(json.dumps(document | {"forms": entries}))
        ok(write(workdir, forms, about, kind="gguf" if entries else "safetensors"))
        card = (workdir.path / "README.md").read_text()
        assert card.count("another\nway: arc 50.0 ± 1.2 %.\n\n#") == 1, card


def write(workdir, forms, about, kind="gguf"):
    path = workdir.path / "about.json"
    path.write_text(json.dumps({"families": [kind], **about}))
    return workdir.card(forms, path, "README.md")


def test_card_tells_all_that_a_reader_and_the_hub_need(workdir, forms, about):
    ok(write(workdir, forms, about))
    card = (workdir.path / "README.md").read_text()
    facts = front_matter(card)
    assert facts["base_model"] == ["acme/base", "acme/tuned"]
    assert facts["base_model_relation"] == "merge"
    assert facts["license"] == "other" and facts["license_name"] == "apache-2.0-and-llama3.3"
    assert facts["language"] == ["de", "en"] and facts["quantized_by"] == "alice"
    assert {"gguf", "merge", "imatrix", "demo"} <= set(facts["tags"])
    for part in (
        "Mix-8B-Q4_K_M.gguf",
        "4.90 GB | 4.90 | 0.03130 ± 0.00031 | 93.00 ± 0.10 %",
        "| 8 GB | **Q4_K_M** |",
        "| 12 GB and more | **Q8_0** |",
        'hf download acme/Mix-8B-GGUF --include "Mix-8B-Q4_K_M.gguf"',
        "| Q8_0 in 2 parts: Mix-8B-Q8_0/ |",
        '--include "Mix-8B-Q8_0/*"',
        "ollama run hf.co/acme/Mix-8B-GGUF:Q4_K_M",
        "<s><|system|>{system_prompt}</s><|user|>{prompt}</s><|assistant|>",
        "e" * 64,
        "40 chunks of 512 tokens",
        "llama-quantize --imatrix imatrix.dat",
        "llama.cpp b10605",
        "merge_method: sce",
        "- acme/tuned@v1: llama3.3",
        "](quality.svg)",
        "9 chunks of 512 tokens",
    ):
        assert part in card, f"the card lacks {part!r}\n{card}"
    assert not re.search(r"\n\n\n|None|[^\n]\n## ", card), card


def test_card_beside_the_files_lists_every_family_and_leads_to_each_form(workdir, tmp_path, about):
    """What is built as EXL2 too must not be missing; a repository's card has one family."""
    entries = [
        {"form": "Q8_0", "family": "gguf", "file": "results/Mix-8B/gguf/Mix-8B-Q8_0.gguf"},
        {"form": "5.0bpw", "family": "exl2", "file": "results/Mix-8B/exl2/5.0bpw"},
    ]
    path = tmp_path / "forms.json"
    forms = [entry | {"bytes": 8 * 10**9} for entry in entries]
    path.write_text(json.dumps({"model": "Mix-8B", "parameters": 8 * 10**9, "forms": forms}))
    about |= {"repos": {}, "shards": {}, "too_large": [], "recipes": None}
    about["exl2"] = {"corpus": "default", "sha256": None, "rows": 100, "length": 2048}
    ok(write(workdir, path, about | {"families": ["gguf", "exl2"]}))
    card = (workdir.path / "README.md").read_text()
    assert re.findall("^## (.*)", card, re.M)[:2] == ["GGUF", "EXL2"]
    for part in (
        "Mix-8B as GGUF for llama.cpp and as EXL2 for ExLlamaV2, a merge by `sce`.",
        "[Mix-8B-Q8_0.gguf](gguf/Mix-8B-Q8_0.gguf)",
        "[5.0bpw](exl2/5.0bpw/)",
        "llama-cli -m gguf/Mix-8B-Q8_0.gguf",
        "python main.py --model-dir exl2 --model-name 5.0bpw",
        "Importance matrix",
        "ExLlamaV2's own texts",
    ):
        assert part in card, f"the card lacks {part!r}\n{card}"
    assert not re.search(r"\n\n\n|None|hf download|[^\n]\n## ", card), card


@pytest.mark.parametrize("corpus", ["default", "own"])
def test_commands_for_exl2_have_no_option_that_does_nothing(workdir, monkeypatch, corpus):
    """exllamav2's own texts have their own number of rows: -r and -mr are forgotten."""
    monkeypatch.chdir(workdir.path)
    measuring = {"measurement_rows": 16, "measurement_length": 1024}
    converting = {"bits": 5, "head_bits": 6, "rows": 77, "length": 2048, "shard_size": 8192}
    record("results/M/exl2/measurement.json", "m", "exl2_measure", measuring, {"model": "w"})
    made_from = {"model": "w", "measurement": "m"}
    record("results/M/exl2/5.0bpw", "f", "exl2_quantize", converting, made_from)
    about = {"model": "M", "families": ["exl2"], "merge": None, "max_file_size": None}
    about["exl2"] = {"corpus": corpus, "rows": 77, "length": 2048}
    forms = {"5.0bpw": {"file": "results/M/exl2/5.0bpw", "family": "exl2"}}
    options = {"model": "M", "weights": "m", "forms": forms, "about": about}
    inputs = {"form 5.0bpw": ("results/M/exl2/5.0bpw", "f")}
    wanted = leave_wanted(workdir.path / "wanted.json", {"options": options}, inputs)
    told = json.loads(ok(workdir.run("describe_card.py", wanted)))
    start = "python -m exllamav2.conversion.convert_exl2 -i M -o work -nr"
    counted = {"default": ("", "", ""), "own": (" -mr 16", " -r 77", " -c own.parquet")}
    measured_rows, rows, text = counted[corpus]
    assert told["commands"]["exl2"] == [
        f"{start} -om measurement.json{measured_rows} -ml 1024{text}",
        f"{start} -m measurement.json -b 5 -hb 6{rows} -l 2048 -ss 8192{text} -cf M-5.0bpw",
    ]
    assert told["tokenizer"] == "results/M/exl2/5.0bpw"
    assert told["versions"] == {"exllamav2": "0.3.2"}


def record(artifact: str, digest: str, step: str, options: dict, inputs: dict) -> None:
    """A record as a build leaves it."""
    Path(artifact).parent.mkdir(parents=True, exist_ok=True)
    recipe = {"step": step, "options": options, "inputs": inputs}
    recipe["tools"] = {"exllamav2": "0.3.2"}
    recipes.write(recipes.Record(artifact, recipe, digest, 1, "s", inputs={"corpus": "c"}))


def test_help_shows_what_the_files_hold(workdir):
    told = ok(workdir.run("card.py", "--help"))
    keys = ("families", "bases", "repos", "shards", "too_large", "tokenizer", "hidden")
    assert [key for key in keys if not re.search(rf"^ +{key} ", told, re.M)] == []


def test_same_input_gives_the_same_card(workdir, forms, about):
    ok(write(workdir, forms, about))
    first = (workdir.path / "README.md").read_bytes()
    ok(write(workdir, forms, dict(reversed(about.items()))))
    assert (workdir.path / "README.md").read_bytes() == first


def test_a_card_of_survivors_lists_no_form_that_a_smaller_one_beats(workdir, forms, about):
    document = json.loads(forms.read_text())
    names = [entry["form"] for entry in document["forms"] if entry.get("evaluation")]
    chunks = [0.01 + 0.001 * n for n in range(20)]
    for number, entry in enumerate(e for e in document["forms"] if e.get("evaluation")):
        measured = json.loads(Path(entry["evaluation"]).read_text())
        entry["bytes"] = (number + 1) * 10**9  # the first is the smallest, and the best
        measured["kld"]["mean"], measured["chunks"] = 0.02 + number / 100, 20
        wobble = [(-1) ** n / 1000 for n in range(20)]
        added = [c + number / 100 + number * w for c, w in zip(chunks, wobble, strict=True)]
        Path(entry["evaluation"]).write_text(json.dumps({**measured, "per_chunk": {"kld": added}}))
    forms.write_text(json.dumps(document))
    assert len(names) > 1
    for survivors, listed in ((False, names), (True, names[:1])):
        ok(write(workdir, forms, about | {"survivors": survivors}))
        text = (workdir.path / "README.md").read_text()
        rows = [line for line in text.splitlines() if re.match(r"\|.*\d \|.*±.*±", line)]
        assert [name for name in names if any(name in row for row in rows)] == listed


def test_card_of_a_bare_quantization_without_figures_claims_none(workdir, tmp_path):
    forms = tmp_path / "forms.json"
    file = "results/Small/gguf/Small-Q8_0.gguf"
    entry = {"form": "Q8_0", "family": "gguf", "file": file, "bytes": 1000, "evaluation": None}
    forms.write_text(json.dumps({"model": "Small", "forms": [entry]}))
    base = {"reference": "./model", "hub": None, "commit": None}
    ok(write(workdir, forms, {"model": "Small", "source": "./model", "bases": [base]}))
    card = (workdir.path / "README.md").read_text()
    assert "base_model" not in front_matter(card) and "KLD:" not in card
    assert "Measured" not in card and "None" not in card and "KL divergence" not in card


def test_quants_of_a_published_merge_name_it_as_their_base(workdir, forms, about):
    about["repos"]["safetensors"] = "acme/Mix-8B"
    ok(write(workdir, forms, about))
    facts = front_matter((workdir.path / "README.md").read_text())
    assert facts["base_model"] == ["acme/Mix-8B"] and facts["base_model_relation"] == "quantized"
    ok(write(workdir, forms, about, kind="safetensors"))
    facts = front_matter((workdir.path / "README.md").read_text())
    assert facts["base_model_relation"] == "merge" and facts["library_name"] == "transformers"


def test_users_own_template_is_used_and_its_faults_are_named(workdir, forms, about):
    template = workdir.path / "my.md.j2"
    template.write_text(
        "---\n{{ front_matter | yaml }}---\n{{ name }}: {{ rows | length }} files\n"
    )
    ok(write(workdir, forms, {**about, "template": str(template)}))
    assert (workdir.path / "README.md").read_text().endswith("---\nMix-8B: 2 files\n")
    template.write_text("{{ nmae }}")
    said = refused(write(workdir, forms, {**about, "template": str(template)}))
    assert "my.md.j2" in said and "nmae" in said


def test_built_in_card_is_valid_front_matter_for_exl2_too(workdir, tmp_path, about):
    path = tmp_path / "forms.json"
    entry = {"form": "4.25bpw", "family": "exl2", "file": "results/Mix-8B/exl2/4.25bpw"}
    path.write_text(json.dumps({"model": "Mix-8B", "forms": [entry | {"bytes": 10**9}]}))
    about |= {"repos": {"exl2": "acme/Mix-8B-exl2"}}
    about["exl2"] = {"corpus": "default", "sha256": None, "rows": 100, "length": 2048}
    ok(write(workdir, path, about, kind="exl2"))
    card = (workdir.path / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "exllamav2"
    assert "--revision 4_25" in card


@pytest.mark.parametrize("corpus", ["default", "own"])
def test_exl2_card_claims_no_rows_that_the_tools_own_texts_do_not_have(
    workdir, tmp_path, about, corpus
):
    path = tmp_path / "forms.json"
    entry = {"form": "5.0bpw", "family": "exl2", "file": "results/Mix-8B/exl2/5.0bpw"}
    path.write_text(json.dumps({"model": "Mix-8B", "forms": [entry | {"bytes": 10**9}]}))
    about["exl2"] = {"corpus": corpus, "sha256": "f" * 64, "rows": 77, "length": 4096}
    ok(write(workdir, path, about, kind="exl2"))
    card = (workdir.path / "README.md").read_text()
    if corpus == "own":
        assert f"the text `own` (sha256 `{'f' * 64}`), 77 rows of 4096 tokens." in card
    else:
        assert "ExLlamaV2's own texts, in rows of 2048 tokens." in card and "77" not in card

"""Card and report of a model that was really built: narrow as SmolLM2, tied, with shards."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.config.load import load
from lib.hub.lock import Lock
from lib.planning.graph import Graph
from lib.planning.publishing import manifest
from lib.record.contents import Contents
from lib.record.layout import LOOKS
from lib.record.wanted import WantedRecipe
from project import ROOT, Project
from tiny_models import TEXT, make_llama, make_sentencepiece, make_texts

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CONFIG = {
    "corpora": {"evaluation": {"path": "data/evaluation.txt"}},
    "models": {
        "Narrow": {
            "source": "./m/narrow",
            "gguf": {
                "quants": [
                    *("Q2_K", "Q4_K_M", "Q8_0"),
                    {
                        "name": "Q4_K_L",
                        "type": "Q4_K_M",
                        "token_embedding_type": "q8_0",
                        "output_tensor_type": "q8_0",
                    },
                ],
                "split_max_size": "1M",
            },
            "evaluate": {"context": 128, "chunks": 3},
        }
    },
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Project:
    """The model, its config, and what `plan` says before it is built."""
    project = Project(tmp_path_factory.mktemp("narrow"), CONFIG)
    model = make_llama(project / "m/narrow", hidden=320, ffn=1024, tied=True)
    make_sentencepiece(model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    (project / "data").mkdir()
    (project / "data/evaluation.txt").write_text("\n".join(TEXT * 100))
    project.planned = project.run("plan")
    project.build()
    return project


def readme(project: Project) -> str:
    return (project / "results/Narrow/README.md").read_text()


def page(project: Project, model: str = "Narrow") -> str:
    return (project / f"results/{model}/report/quality.html").read_text()


def test_every_link_of_the_card_leads_to_a_file(narrow):
    found = re.findall(r"\]\(([^)]+)\)", readme(narrow))
    local = [link for link in found if "://" not in link]
    assert {"report/quality.svg", "gguf/Narrow-Q2_K.gguf", "shards/Q8_0/"} <= set(local)
    assert [link for link in local if not (narrow / f"results/Narrow/{link}").exists()] == []


def test_commands_of_the_card_name_files_that_are_there(narrow):
    (run,) = re.findall(r"## Run\n\n```sh\n(.*?)```", readme(narrow), re.S)
    files = re.findall(r"\S*gguf/\S+\.gguf", run)
    assert files and all((narrow / f"results/Narrow/{file}").exists() for file in files), run


def test_card_says_of_every_form_where_its_shards_are(narrow):
    folders = [path for path in (narrow / "results/Narrow/shards").iterdir() if path.is_dir()]
    assert len(folders) > 1
    for shards in folders:
        assert f"also as shards: [shards/{shards.name}/](shards/{shards.name}/)" in readme(narrow)


def test_card_waits_for_the_shards_that_it_tells_of(monkeypatch, tmp_path):
    """With several cores it was written before some of them, and stayed wrong."""
    monkeypatch.chdir(tmp_path)
    publish = {family: f"org/M-{family}" for family in ("gguf", "exl2", "safetensors")}
    merge = {"merge_method": "linear", "dtype": "bfloat16"}
    merge["models"] = [{"model": "org/a@v1", "parameters": {"weight": 1}}]
    gguf = {"quants": ["Q8_0", "Q4_0"], "split_max_size": "1G"}
    model = {"merge": merge, "gguf": gguf, "exl2": {"bits": 4}, "publish": publish}
    made = Graph(
        load({"models": {"M": model}}, tmp_path)[0], Contents(Path("none")), Lock()
    ).artifacts("M")
    told = {
        path: {role for role in card.inputs if role.startswith("shards ")}
        for path, card in made.items()
        if card.rule == "card"
    }
    both = {"shards Q8_0", "shards Q4_0"}
    assert told == {
        "results/M/README.md": set(),
        "results/M/README.gguf.md": both,
        "results/M/README.exl2.md": set(),
        "results/M/README.safetensors.md": set(),
    }


def copied(project: Project, to: Path, card: str) -> Path:
    """Copy the inputs of a card and all records, nothing else; its wanted recipe."""
    (left,) = (project / f".snakemake/quantmill/wanted/{card}").glob("*/recipe.json")
    for record in project.path.rglob("*.recipe.json"):
        (to / record.relative_to(project.path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(record, to / record.relative_to(project.path))
    for path, _ in WantedRecipe.read(left).inputs.values():
        copy = shutil.copytree if (project / path).is_dir() else shutil.copy
        copy(project / path, to / path)
    return left


def test_card_and_report_read_their_inputs_and_records_alone(narrow, tmp_path):
    """What else there is may have been reclaimed: one recipe would give two cards."""
    left = copied(narrow, tmp_path, "results/Narrow/README.md")
    assert (
        not (tmp_path / "m").exists()
        and not (tmp_path / "results/Narrow/gguf/Narrow-BF16.gguf").exists()
    )

    def run(script: str, *words: str) -> str:
        command = [sys.executable, ROOT / "scripts" / script, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "forms.json").write_text(run("describe_forms.py", str(left)))
    (tmp_path / "about.json").write_text(run("describe_card.py", str(left)))
    given = ("--forms", "forms.json", "--families", str(narrow / LOOKS))
    run("card.py", *given, "--about", "about.json", "--output", "card.md")
    outputs = [f"--{kind}={kind}" for kind in ("csv", "svg", "html")]
    run("report.py", "--model", "Narrow", *given, *outputs)
    assert (tmp_path / "card.md").read_text() == readme(narrow)
    assert (tmp_path / "html").read_text() == page(narrow)
    assert "<s>[system]{system_prompt}[user]{prompt}" in readme(narrow)


def test_a_record_of_another_config_is_not_believed(narrow, tmp_path):
    """A conversion may have been built again since, from another recipe and of another size."""
    left = copied(narrow, tmp_path, "results/Narrow/README.md")
    path = tmp_path / "results/Narrow/gguf/Narrow-BF16.gguf.recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0" * 64}))
    command = [sys.executable, ROOT / "scripts/describe_forms.py", left]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "BF16" not in [form["form"] for form in json.loads(done.stdout)["forms"]]


@pytest.mark.parametrize("form", ["Q2_K", "Q4_K_M", "Q8_0"])
def test_report_card_and_plan_tell_what_the_tool_could_not_quantize_as_asked(narrow, form):
    log = (narrow / f"logs/Narrow/gguf/Narrow-{form}.gguf.log").read_text()
    counted = re.findall(r"(\d+) of (\d+) tensor\(s\) required fallback", log)
    types = set(re.findall(r"falling back to +(\w+)", log))
    assert bool(counted) == (form != "Q8_0")
    planned = re.sub(r"\n +", " ", narrow.planned)
    for text in (readme(narrow), page(narrow), planned):
        said = re.findall(rf"types:.*?(\d+) of (\d+) in [^;.]*\b{form} \(([^)]+)\)", text)
        assert [(count, total) for count, total, _ in said] == counted
        assert {kind for *_, kinds in said for kind in kinds.split(", ")} == types
    row = re.search(rf'<tr data-form="{form}" .*?</tr>', page(narrow), re.S).group()
    assert (">fallback</span>" in row) == bool(counted)


def test_report_says_which_llama_cpp_the_figures_are_from(narrow):
    version = json.loads((narrow / "results/Narrow/evaluation/Q8_0.json.recipe.json").read_text())
    said = (
        f"Against the unquantized model in llama.cpp {version['recipe']['tools']['llama.cpp']}, on"
    )
    assert said in page(narrow)


def test_forms_that_are_the_same_file_are_said_to_be(narrow):
    """Tied embeddings are in eight bits anyway: `_L` changes nothing, nobody needs both."""
    same = "Q4_K_L and Q4_K_M are the same file, byte for byte"
    files = [
        (narrow / f"results/Narrow/gguf/Narrow-{f}.gguf").read_bytes() for f in ("Q4_K_L", "Q4_K_M")
    ]
    assert files[0] == files[1]
    assert same in readme(narrow) and same in page(narrow)
    assert readme(narrow).count("same file") == 1


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Project:
    """A model with two presets and two mixes."""
    types = ["q2_k", "q4_k", "q6_k"]
    targets = [{"name": "At-5", "target_bpw": 5}, {"name": "Near", "max_kld": 0.1}]
    gguf = {"imatrix": {"chunks": 4, "context": 128}, "quants": ["Q2_K", "Q4_K_M", *targets]}
    model = {
        "source": "./m/mixed",
        "gguf": gguf | {"mixes": {"chunks": 2, "types": types}},
        "evaluate": {"context": 128, "chunks": 10},
        "publish": {"gguf": "org/Mixed-GGUF"},
    }
    texts = {name: {"path": f"data/{name}.txt"} for name in ("calibration", "evaluation")}
    config = {"corpora": texts, "models": {"Mixed": model}}
    project = Project(tmp_path_factory.mktemp("mixed"), config)
    make_sentencepiece(make_llama(project / "m/mixed", hidden=512))
    make_texts(project / "data", 200)
    project.build()
    return project


def test_the_commands_of_the_card_make_the_bytes_of_each_mix(mixed, tmp_path):
    card = (mixed / "results/Mixed/README.md").read_text()
    (typed,) = re.findall(r"path of the imatrix as it was typed: (\S+)", card)
    for directory in ("results/Mixed", "mixes"):
        (tmp_path / directory).mkdir(parents=True)
    shutil.copy(mixed / typed, tmp_path / typed)
    for mix in (mixed / "results/Mixed/mixes").glob("*.txt"):
        shutil.copy(mix, tmp_path / "mixes")
    shutil.copy(mixed / "results/Mixed/gguf/Mixed-BF16.gguf", tmp_path)
    tools = mixed / "resources/llama.cpp/bin"
    lines = re.findall(r"^(llama-quantize .*--tensor-type-file.*)$", card, re.M)
    assert len(lines) == 2
    for line in lines:
        command = f"{tools}/{line}".replace("--imatrix imatrix.dat", f"--imatrix {typed}")
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    for form in ("At-5", "Near"):
        name = f"Mixed-{form}.gguf"
        made = mixed / f"results/Mixed/gguf/{name}"
        assert (tmp_path / name).read_bytes() == made.read_bytes()


def test_card_says_how_each_mix_was_found_and_whether_a_preset_is_better(mixed):
    card = (mixed / "results/Mixed/README.md").read_text()
    said = r"- \*\*At-5\*\* \(\[types\]\(mixes/At-5.txt\)\): at most 5 bits a weight. "
    said += r"KLD expected [\d.]+ on `calibration`, measured [\d.]+ ± [\d.]+ on `evaluation`. "
    said += "It .*, the best preset here"
    assert re.search(said, card)
    assert "the smallest with a KLD of at most 0.1 on calibration, its second half" in card
    # No model is made into an imatrix but the conversion.
    assert card.count("llama-imatrix") == 1
    assert "static" not in re.findall(r'data-form="At-5".*?</tr>', page(mixed, "Mixed"), re.S)[-1]


def test_mixes_are_published_with_what_they_were_chosen_by(mixed, monkeypatch):
    monkeypatch.chdir(mixed.path)
    settings, _ = load(mixed.config, mixed.path)
    found = manifest(Graph(settings, Contents(Path("none")), Lock()))["repos"][0]
    names = {file["name"] for file in found["branches"]["main"]}
    assert {"mixes/At-5.txt", "mixes/Near.txt", "imatrix.dat", "Mixed-At-5.gguf"} <= names
    assert set(found["recipes"]) == {"Mixed-BF16.gguf", "sensitivity.json"}

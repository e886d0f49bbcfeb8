"""Studies built from the demo's models: who must win, what nobody can tell, what is made again."""

import copy
import csv
import shutil

import pytest
import yaml

from project import ROOT, Project, sha256
from task_texts import make_tasks

CODE, PROSE = "heldout-code", "heldout-prose"
STUDIES = {
    # One partner of the three is whole, the others are damaged: its merge has to win.
    "Damage": {
        "merge": {
            "merge_method": "linear",
            "models": [
                {"model": "./m/code", "parameters": {"weight": 0.5}},
                {"model": "./m/$partner", "parameters": {"weight": 0.5}},
            ],
            "dtype": "bfloat16",
        },
        "vary": {"partner": ["noisy", "prose", "noisier"]},
        "measure": {"perplexity": [CODE, PROSE], "context": 128, "chunks": 24},
    },
    # All differ in their seed alone: which of them is ahead is chance.
    "Seeds": {
        "merge": {
            "merge_method": "dare_ties",
            "base_model": "./m/base",
            "models": [
                {"model": "./m/code", "parameters": {"weight": 0.5, "density": 0.5}},
                {"model": "./m/prose", "parameters": {"weight": 0.5, "density": 0.5}},
            ],
            "dtype": "bfloat16",
        },
        "vary": {"seed": [1, 2]},
        "random_seed": "$seed",
        "measure": {
            "perplexity": [PROSE],
            "kld": [PROSE],
            "tasks": {"hellaswag": {"file": "data/hellaswag.txt", "count": 8}},
            "context": 128,
            "chunks": 24,
        },
    },
}
TOP = "results/studies/Damage"


@pytest.fixture(scope="module")
def measured(demo, tmp_path_factory) -> Project:
    """Both studies, measured, in two rounds where nothing was chosen yet."""
    import torch
    from safetensors.torch import load_file, save_file

    here = tmp_path_factory.mktemp("studies")
    for name in ("base", "code", "prose"):
        shutil.copytree(demo / name, here / "m" / name)
    for name, share in (("noisy", 0.5), ("noisier", 1.0)):
        shutil.copytree(demo / "prose", here / "m" / name)
        file, generator = here / "m" / name / "model.safetensors", torch.Generator().manual_seed(0)
        tensors = load_file(file)
        for key, value in tensors.items():
            if value.dim() == 2:
                noise = torch.randn(value.shape, generator=generator) * value.float().std()
                tensors[key] = (value.float() + share * noise).to(value.dtype)
        save_file(tensors, file, {"format": "pt"})
    (here / "data").mkdir()
    make_tasks(here / "data")
    for name in (CODE, PROSE):
        shutil.copy(demo / "text" / f"{name}.txt", here / "data")
    config = {
        "corpora": {name: {"path": f"data/{name}.txt"} for name in (CODE, PROSE)},
        "models": {"Best": {"merge": {"study": "Damage"}, "gguf": {"quants": ["Q8_0"]}}},
        "studies": copy.deepcopy(STUDIES),
    }
    project = Project(here, config)
    said = project.build()
    assert "Best waits for the study Damage: `snakemake --cores all` measures it" in said
    assert "study Damage: it is measured: `snakemake choose` takes prose." in said
    return project


@pytest.fixture
def studied(measured, tmp_path) -> Project:
    return measured.copy(tmp_path / "project")


@pytest.fixture(scope="module")
def chosen(measured, tmp_path_factory) -> Project:
    """The studies, and what `choose` said of them."""
    project = measured.copy(tmp_path_factory.mktemp("chosen") / "project")
    project.said = project.run("choose")
    return project


def test_the_candidate_that_is_not_damaged_wins_and_that_is_sure(chosen):
    said = chosen.said.partition("Seeds:")[0]
    assert "prose wins of 3 candidates" in said and "Decided" in said, said
    winner = yaml.safe_load((chosen / "config/studies.lock.yaml").read_text())["studies"]["Damage"]
    assert winner["winner"]["values"] == {"partner": "prose"}
    rows = (chosen / f"{TOP}/study.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:4]] == ["prose", "noisy", "noisier"]


def test_a_study_says_how_far_each_candidate_went_from_each_model(measured):
    rows = csv.DictReader((measured / "results/studies/Seeds/study.csv").open())
    first, second, *merged = rows
    for row in (first, second, *merged):
        assert 0 <= float(row["tasks.hellaswag"]) <= 1 and row["tasks.hellaswag_error"]
    assert len(merged) == 3
    away = {name: float(value) for name, value in first.items() if name.startswith("kld.")}
    parents = [name for name in away if name.count(".") == 2 and not name.endswith("_error")]
    assert len(parents) == 3 and all(0.001 < away[name] < 10 for name in parents)
    mean = sum(away[name] for name in parents) / 3
    assert abs(away[f"kld.{PROSE}"] - mean) < 1e-5 * mean


def test_candidates_that_differ_in_their_seed_alone_are_undecided(chosen):
    said = chosen.said.partition("Seeds:")[2]
    assert "Undecided" in said and "differs from it in the seed alone" in said


def test_the_winner_is_built_and_has_the_candidates_bytes(chosen, tmp_path):
    project = chosen.copy(tmp_path / "project")
    made = project.plan()
    assert made == {
        "results/Best/safetensors",
        "results/Best/gguf/Best-BF16.gguf",
        "results/Best/gguf/Best-Q8_0.gguf",
        "results/Best/report/quality.csv",
        "results/Best/README.md",
    }
    project.config["studies"]["Damage"]["keep"] = True
    project.build(*sorted(made), f"{TOP}/candidates/prose/safetensors")
    one, other = (
        project / f"{place}/safetensors/model.safetensors"
        for place in ("results/Best", f"{TOP}/candidates/prose")
    )
    assert sha256(one) == sha256(other) and one.samefile(other), "it is made once, and linked"
    log = project / "logs/studies/Damage/candidates/prose/safetensors.log"
    assert "results/Best/safetensors was made by the same recipe" in log.read_text()
    assert project.plan() == set()


def test_candidates_are_gone_once_they_are_measured(measured):
    left = [path for path in (measured / "results").rglob("*.safetensors")]
    left += [path for path in (measured / "results").rglob("*.gguf")]
    left += [path for path in (measured / "results").rglob("*.kld")]
    assert left == []
    assert measured.plan() == set()


def test_a_model_keeps_the_winner_until_choose_is_asked(chosen, tmp_path):
    project = chosen.copy(tmp_path / "project")
    project.build()
    project.config["studies"]["Damage"]["vary"]["partner"].append("base")
    assert not any(path.startswith("results/Best/") for path in project.plan())
    project.config["studies"]["Damage"]["vary"]["partner"] = ["noisy", "noisier"]
    assert not any(path.startswith("results/Best/") for path in project.plan())
    said = project.run("status")
    assert "study Damage: prose, which was chosen, is no longer one of it" in said
    assert project.run("why").count("study Damage: prose, which was chosen") == 1
    said = project.run("choose")
    assert "noisy as the winner of Damage, in place of prose" in said
    assert "results/Best/safetensors" in project.plan()


def test_rounds_measure_many_on_little_and_few_on_much(studied):
    study = studied.config["studies"]["Damage"]
    study["rounds"] = [{"chunks": 4, "keep": 1}, {}]
    del studied.config["studies"]["Seeds"]
    first = studied.plan()
    assert sum("/perplexity/1/" in path for path in first) == 2 * 3
    assert not any("/candidates/" in path and "/perplexity/2/" in path for path in first)
    studied.build()
    said = studied.run("choose")
    assert "1 of 3 candidates stay for the next round" in said and "prose is ahead" in said
    second = studied.plan()
    assert {p for p in second if "/perplexity/" in p} == {
        f"{TOP}/candidates/prose/perplexity/2/{text}.json" for text in (CODE, PROSE)
    }
    assert "Best waits" in studied.build()
    said = studied.run("choose")
    assert "Dropped after round 1 (4 chunks of each text) noisy, noisier." in said
    lines = (studied / f"{TOP}/study.csv").read_text()
    assert "place 3 of 3 in round 1" in lines


def test_somebody_may_pick_another_candidate(chosen, tmp_path):
    project = chosen.copy(tmp_path / "project")
    said = project.run("choose", "--config", "model=Damage", "pick=lost", check=False)
    assert "pick: lost is no candidate of Damage (noisy, prose, noisier)" in said
    said = project.run("choose", "--config", "model=Damage", "pick=noisy")
    assert "noisy as the winner of Damage, in place of prose: commit it." in said
    lock = yaml.safe_load((project / "config/studies.lock.yaml").read_text())
    assert lock["studies"]["Damage"]["winner"]["candidate"] == "noisy"
    assert lock["studies"]["Seeds"]["winner"], "the other study's entry stays"
    assert "study Damage" not in project.run("status")


def test_two_models_of_the_same_merge_are_merged_once(tmp_path, measured):
    project = measured.copy(tmp_path / "project")
    merge = {**STUDIES["Damage"]["merge"]}
    merge["models"] = [merge["models"][0], {"model": "./m/prose", "parameters": {"weight": 0.25}}]
    one = {"merge": merge, "gguf": {"quants": ["Q8_0"]}}
    project.config = {"models": {"One": one, "Other": copy.deepcopy(one)}}
    said = project.build()
    assert said.count("results/One/safetensors was made") == 0  # it is told in the log
    log = (project / "logs/Other/safetensors.log").read_text()
    assert "results/One/safetensors was made by the same recipe: its files are taken" in log
    files = [project / f"results/{name}/safetensors/model.safetensors" for name in ("One", "Other")]
    assert files[0].samefile(files[1])
    record = [project / f"results/{name}/safetensors.recipe.json" for name in ("One", "Other")]
    assert "parameters" in record[1].read_text() and record[0].exists()


def test_the_example_declares_twelve_candidates():
    found = yaml.safe_load((ROOT / "config/examples/study.yaml").read_text())["studies"]["Which"]
    assert len(found["vary"]["method"]) * len(found["pairs"]) == 12

"""Environments of tools, and tasks by lm-evaluation-harness in one of them."""

import json
import shutil
from pathlib import Path

import pytest

import evaluate_harness
import install_environment
import lib.stages.environments
from lib.errors import UserError
from lib.formats.task_files import Task
from project import EVERYTHING, Planned, Project
from task_texts import make_tasks

SMALL = "colorama==0.4.6\n"
PINS = lib.stages.environments.FILES / "lm-eval.txt"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("QUANTMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_environment_is_whole_or_made_again_and_then_shared(cache, tmp_path):
    (tmp_path / "small.txt").write_text(SMALL)
    home = install_environment.installed(tmp_path / "small.txt")
    package = next(home.glob("lib/python*/site-packages/colorama/__init__.py"))
    before = package.stat().st_ino
    assert install_environment.installed(tmp_path / "small.txt") == home
    assert package.stat().st_ino == before
    (home / "complete").unlink()  # as an installation that was killed leaves it
    package.unlink()
    assert install_environment.installed(tmp_path / "small.txt") == home
    assert package.is_file()


def test_an_environment_that_cannot_be_installed_is_one_line_and_never_taken_for_whole(
    cache, tmp_path
):
    (tmp_path / "small.txt").write_text("colorama==0.0.0\n")
    for _ in range(2):
        with pytest.raises(UserError, match="small.txt could not be installed: python pip ended"):
            install_environment.installed(tmp_path / "small.txt")


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("lm_eval==0.4.13", "lm_eval==0.4.14", True),
        ("tokenizers==0.23.3", "tokenizers==0.23.4", True),
        ("tqdm==", "tqdm==0", False),
        ("rich==15.0.0", "# rich is gone", False),
    ],
)
def test_a_pin_of_the_tool_makes_its_scores_stale_and_one_without_influence_nothing(
    tmp_path, monkeypatch, old, new, stale
):
    project = Project.create(tmp_path / "project")
    monkeypatch.chdir(project.path)
    planned = Planned(EVERYTHING)
    shutil.copytree(PINS.parent, tmp_path / "envs")
    (tmp_path / "envs/lm-eval.txt").write_text(PINS.read_text().replace(old, new))
    monkeypatch.setattr(lib.stages.environments, "FILES", tmp_path / "envs")
    shown = {f"results/All/{name}" for name in ("harness/hellaswag.json", "README.md")}
    shown |= {"results/All/report/quality.csv", "resources/environments/lm-eval"}
    assert PINS.read_text() != (tmp_path / "envs/lm-eval.txt").read_text()
    assert planned.plan() == (shown if stale else set())


def test_a_harness_that_ends_well_without_samples_is_one_line(tmp_path):
    tasks = [Task("a", ["b", "c"], 0)]
    with pytest.raises(UserError, match="true ended with status 0 and 0 files of samples"):
        evaluate_harness.solved(tasks, "hellaswag", ["true"], tmp_path)


def test_the_harness_and_llama_cpp_find_the_same_choices_where_they_compare_alike(tmp_path, demo):
    """WinoGrande: mean or sum over the same words. HellaSwag: by characters, not by tokens."""
    make_tasks(tmp_path, 60)
    shutil.copytree(demo / "base", tmp_path / "base")
    shutil.copy(demo / "text/evaluation.txt", tmp_path)
    tasks = {"hellaswag": "hellaswag.txt", "winogrande": "winogrande.csv"}
    model = {"source": "./base", "gguf": {"quants": ["BF16"]}}
    model["evaluate"] = {"chunks": 1, "tasks": tasks, "harness": True}
    corpora = {"evaluation": {"path": "evaluation.txt"}}
    project = Project(tmp_path, {"corpora": corpora, "models": {"Base": model}})
    project.build()
    assert project.plan() == set()
    score = {
        (task, engine): json.loads((tmp_path / "results/Base" / place).read_text())
        for task in tasks
        for engine, place in (
            ("llama.cpp", f"evaluation/tasks/{task}/BF16.json"),
            ("harness", f"harness/{task}.json"),
        )
    }
    agree = {
        task: sum(
            a == b
            for a, b in zip(
                score[task, "llama.cpp"]["correct"],
                score[task, "harness"]["correct"],
                strict=True,
            )
        )
        for task in tasks
    }
    assert agree["winogrande"] >= 54
    assert agree["hellaswag"] >= 40
    assert score["winogrande", "harness"]["metric"] == "acc"
    card = (tmp_path / "results/Base/README.md").read_text()
    assert f"hellaswag: BF16 {100 * score['hellaswag', 'llama.cpp']['score']:.1f} ± " in card
    assert f"winogrande {100 * score['winogrande', 'harness']['score']:.1f} ± " in card
    page = (tmp_path / "results/Base/report/quality.html").read_text()
    assert "lm-evaluation-harness, which compares choices in another way" in " ".join(page.split())

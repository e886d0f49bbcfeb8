"""docs/adding-a-family.md, done to a copy of the repository: a family is what its own files say."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from project import ROOT, Project

PAGE = (ROOT / "docs/adding-a-family.md").read_text()
BLOCK = re.compile(r"(?:`([\w./-]+)`:\n\n)?```(\w+)\n(.*?)```", re.S)
COPIED = ("Snakefile", "config", "dev", "envs", "profiles", "report", "requirements.txt")
COPIED += ("rules", "scripts")


def blocks(kind: str) -> list[tuple[str, str]]:
    """(file that the page names before it, or nothing; text) of the page's blocks of a kind."""
    return [(name, text) for name, found, text in BLOCK.findall(PAGE) if found == kind]


def patched(text: str, diff: str) -> str:
    """A file's text with a diff of the page, which has no line numbers."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] != "+")
        new = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(old) == 1, f"the page changes lines that are not there:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of the repository, with the page's files and lines."""
    here = tmp_path_factory.mktemp("guest") / "repository"
    here.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, here / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, here)
    for name, text in blocks("python"):
        assert not (here / name).exists()
        (here / name).write_text(text)
    for name, diff in blocks("diff"):
        (here / name).write_text(patched((here / name).read_text(), diff))
    (_, docs), _ = blocks("sh")
    subprocess.run(docs.replace("python ", f"{sys.executable} "), shell=True, cwd=here, check=True)
    return here


@pytest.fixture
def guest(repository, tmp_path, workdir, monkeypatch) -> Project:
    """A working directory with the page's config."""
    for name, value in workdir.env.items():
        monkeypatch.setenv(name, value)
    project = Project.create(tmp_path / "project")
    project.repository = repository
    project.config = yaml.safe_load(blocks("yaml")[0][1])
    return project


def test_a_family_is_added_by_four_files_and_three_lines(repository):
    assert len(blocks("python")) == 4
    added = [line for _, diff in blocks("diff") for line in diff.splitlines() if line[0] == "+"]
    assert len(added) == 3, "a further family touches more of the files that are there"
    readme = (repository / "config/README.md").read_text()
    assert "### `models.NAME.copies`" in readme and "| `copies` | text |" in readme
    schema = json.loads((repository / "config/schema.json").read_text())
    assert schema["$defs"]["Model"]["properties"]["copies"]


def test_the_pages_own_code_is_as_the_house_wants_it(repository):
    check = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
    names = [name for name, _ in blocks("python") if name.endswith(".py")]
    done = subprocess.run([*check, *names], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    rules = [name for name, _ in blocks("python") if name.endswith(".smk")]
    check = [sys.executable, "-m", "snakefmt", "--check", *rules]
    done = subprocess.run(check, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_question_knows_a_family_that_was_just_added(guest):
    asked = blocks("sh")[1][1].replace("snakemake", "").splitlines()
    said = {}
    for line in asked:
        target = line.replace("--cores all", "").strip()
        said[target] = guest.run(*filter(None, [target]), check=target != "publish_plan")
    forms = {"half.copy": 1, "whole.copy": 2}
    for form in forms:
        assert re.search(rf"copies/{form} +copy +[\d.]+ [kM]B", said["plan"]), said["plan"]
        assert f"built   results/Plain/copies/{form}" in said[""]
        assert f"built   results/Plain/evaluation/{form}.json" in said[""]
    assert "Plain: 2 artifacts of weights" in said[""]
    assert "Nothing is stale" in said["why"]
    head, row = (
        line.split()
        for line in said["status"].splitlines()
        if line.startswith(("model ", "Plain "))
    )
    assert (head, row) == (["model", "copies", "evaluated", "report"], ["Plain", *["2/2"] * 3])
    assert re.search(r"All \d+ artifacts .* are what their records say", said["verify"])
    assert "No orphans" in said["orphans"]
    assert "half.copy   Copies: no way to measure speed is known" in said["speed"]
    assert "acme/Plain-copies (new" in said["publish_plan"] and "half.copy" in said["publish_plan"]

    page = (guest / "results/Plain/report/quality.html").read_text()
    plot = (guest / "results/Plain/report/quality.svg").read_text()
    assert "Copies cannot be loaded." in page and "#2c7a4b" in page and "#2c7a4b" in plot
    table = (guest / "results/Plain/report/quality.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["form", *forms]
    card = (guest / "results/Plain/README.md").read_text()
    assert "Plain as copies of its weights" in card and "[half.copy](copies/half.copy)" in card
    own = (guest / "results/Plain/README.copies.md").read_text()
    assert "hf download acme/Plain-copies half.copy" in own


def test_what_changes_makes_its_own_stale_and_what_is_skipped_is_left_out(guest):
    guest.build()
    guest.model("Plain")["copies"]["sizes"] = ["half"]
    assert "copies/whole.copy" in guest.run("orphans")
    guest.model("Plain")["copies"]["sizes"] = ["half", "whole"]
    half = guest / "results/Plain/copies/half.copy"
    half.write_bytes(half.read_bytes()[:-1])
    assert "results/Plain/copies/half.copy has " in guest.run("why")
    assert "truncated" in guest.run("verify", check=False)
    left = guest.plan("--config", "skip=copies")
    assert not any("copies/" in path or "evaluation/" in path for path in left)
    said = guest.run("plan", "--config", "skip=copie", check=False)
    listed = "gguf, exl2, exl3, compressed_tensors, mlx, extract_lora, copies"
    assert f"skip: 'copie' is not one of {listed}; did you mean copies?" in said


def test_no_edit_of_a_declaration_makes_anything_stale(guest, repository, tmp_path):
    """Memory, titles, colours: what a stage or family says of itself decides no bytes."""
    guest.build()
    guest.repository = tmp_path / "edited"
    shutil.copytree(repository, guest.repository)
    declared = guest.repository / "scripts/lib/stages/copies.py"
    text = declared.read_text()
    for old, new in (("Memory(500)", "Memory(900)"), ("#2c7a4b", "#000000"), ('"Copies"', '"C"')):
        assert old in text
        text = text.replace(old, new)
    declared.write_text(text)
    assert guest.plan() == set()

"""What jobs ask a scheduler for: too little, and it kills them; too much, and they never start."""

import re
from pathlib import Path

import pytest

from project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project of which nothing is built."""
    return Project.create(tmp_path / "project")


def minutes(project: Project, rule: str, *arguments: str) -> int:
    """The time limit of Mix's job of a rule, in minutes."""
    target = {"imatrix": "results/Mix/imatrix.dat", "evaluate": "results/Mix/evaluation/Q8_0.json"}
    said = project.run(target[rule], "--dry-run", "--quiet", "host", *arguments)
    (found,) = re.findall(rf"^rule {rule}:\n.*?runtime=(\d+)", said, re.M | re.S)
    return int(found)


def test_a_long_text_gets_a_longer_limit_and_a_gpu_a_shorter_one(project):
    imatrix = project.model("Mix")["gguf"]["imatrix"]
    limits = []
    for chunks in (10, 1000):
        imatrix |= {"chunks": chunks, "context": 512}
        limits.append(minutes(project, "imatrix"))
    assert limits[1] > 4 * limits[0]
    assert minutes(project, "imatrix", "--set-resources", "imatrix:gpu=1") < limits[1] / 4
    assert minutes(project, "imatrix", "--set-resources", "imatrix:gpu=0") == limits[1]


def test_an_evaluations_limit_follows_from_the_text_that_its_base_logits_have_read(project):
    section = project.model("Mix")["evaluate"]
    section |= {"context": 512, "chunks": 10}
    short = minutes(project, "evaluate")
    section["chunks"] = 1000
    assert minutes(project, "evaluate") > 4 * short

"""The house itself: what each config makes by name, and promises about its files that nobody would notice breaking."""

import re
from pathlib import Path

import pytest
import yaml

from lib.config import load
from lib.contents import Contents
from lib.graph import Graph
from lib.lock import Lock

ROOT = Path(__file__).parent.parent
CONFIGS = [ROOT / "config/config.yaml", *sorted((ROOT / "config/examples").glob("*.yaml"))]
SNAPSHOTS = ROOT / "tests/snapshots"


def declared(config: Path) -> str:
    """The paths of all that a config declares, with the rule that makes each; `~` marks intermediates."""
    settings, _ = load(yaml.safe_load(config.read_text()), ROOT)
    graph = Graph(settings, Contents(Path("no such file")), Lock())
    lines = (
        f"{'~' if made.intermediate else ' '} {made.rule:16} {path}"
        for made in graph
        for path in made.outputs
    )
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_no_artifact_of_an_example_changes_its_name(config: Path) -> None:
    snapshot = SNAPSHOTS / f"{config.stem}.txt"
    found = declared(config)
    assert found == snapshot.read_text(), f"if that is meant: write it to {snapshot.name}:\n{found}"


def test_each_artifact_is_made_by_a_rule_that_exists() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    known = set(re.findall(r"^rule (\w+):", rules, re.M))
    made = {
        line.lstrip("~ ").split()[0] for path in CONFIGS for line in declared(path).splitlines()
    }
    assert made <= known


def test_conda_and_pip_users_get_the_same_versions() -> None:
    pins = [line for line in (ROOT / "requirements.txt").read_text().split("\n") if "==" in line]
    conda = yaml.safe_load((ROOT / "envs/quantmill.yaml").read_text())
    (packages,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert packages == pins


def test_no_rule_runs_python_inside_snakemake() -> None:
    """A `run:` block costs 2.5 s a job and hides its code from the recipe."""
    for path in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]:
        assert not re.search(r"^\s+(run|script):", path.read_text(), re.M), path


def test_every_step_logs_is_benchmarked_and_frames_its_work() -> None:
    for path in (ROOT / "rules").glob("*.smk"):
        for name, body in re.findall(
            r"^rule (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), re.M | re.S
        ):
            if "output:" in body:
                assert "begin {input.recipe:q} {log:q}\n" in body and "commit\n" in body, name
                assert "log:" in body and "benchmark:" in body, name


def test_the_snakefile_stays_a_table_of_contents() -> None:
    assert len((ROOT / "Snakefile").read_text().splitlines()) < 60

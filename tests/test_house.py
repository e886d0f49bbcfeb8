"""The repository itself: the names of all that each config makes, and promises about its files."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from lib.config.load import load
from lib.hub.lock import Lock
from lib.planning.graph import Graph
from lib.record import packages
from lib.record.contents import Contents

ROOT = Path(__file__).parent.parent
CONFIGS = [ROOT / "config/config.yaml", *sorted((ROOT / "config/examples").glob("*.yaml"))]
SNAPSHOTS = ROOT / "tests/snapshots"


def declared(config: Path) -> str:
    """The paths of all that a config declares, each with its rule; `~` marks intermediates."""
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


def test_the_workflow_catalog_and_whoever_cites_find_what_they_need() -> None:
    """The catalog needs both words in the README, and this file; CFF 1.2.0 needs these keys."""
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme and (ROOT / "config/README.md").exists()
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    deployment = {"conda": True, "apptainer": False, "apptainer+conda": False, "report": True}
    assert usage["software-stack-deployment"] == deployment
    assert all(rule_has_an_environment(path.read_text()) for path in (ROOT / "rules").glob("*.smk"))
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    known = {
        "cff-version",
        "message",
        "type",
        "title",
        "abstract",
        "authors",
        "license",
        "keywords",
    }
    assert set(cited) == known and cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert all(set(author) == {"name"} for author in cited["authors"])
    assert len(set(cited["keywords"])) == len(cited["keywords"])
    assert cited["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()


def rule_has_an_environment(rules: str) -> bool:
    """Whether each rule with a shell block runs in a conda environment."""
    bodies = re.findall(r"^rule \w+:\n(.*?)(?=^\S|\Z)", rules, re.M | re.S)
    return all("conda:" in body for body in bodies if "shell:" in body)


def test_the_snakefile_stays_a_table_of_contents() -> None:
    assert len((ROOT / "Snakefile").read_text().splitlines()) < 60


def imported(path: Path) -> set[str]:
    """The packages that a Python file imports, functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module))
    return {name.partition(".")[0] for name in names}


def test_each_package_that_is_imported_is_pinned_also_what_others_bring_along() -> None:
    """httpx2 was imported and not required: with another huggingface_hub every run failed."""
    pinned = {
        name.lower().replace("-", "_").partition("[")[0]
        for file in (*ROOT.glob("requirements*.txt"), *ROOT.glob("envs/*.txt"))
        for name in packages.pins(file)
    }
    distributions = metadata.packages_distributions()
    files = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    own = {"lib", "convert_hf_to_gguf", *(path.stem for path in files)}  # the one is llama.cpp's
    own |= {path.parent.name for path in files if path.name == "__init__.py"}
    own.add("vllm")  # of the interpreter that tests/gpu/compressed_tensors.sh is given
    for path in files:
        for name in imported(path) - own - sys.stdlib_module_names:
            known = {name, *distributions.get(name, [])}
            wanted = {word.lower().replace("-", "_") for word in known}
            assert wanted & pinned, f"{path.relative_to(ROOT)} imports {name}, which nothing pins"


def test_a_package_that_is_missing_or_too_old_is_one_line(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-package==1.0 # a comment\npydantic==99.1\npyyaml==0.1\n")
    with pytest.raises(SystemExit) as end:
        packages.insist(requirements=requirements)
    there = metadata.version("pydantic")
    assert str(end.value) == (
        f"no-such-package is not installed, pydantic {there} is too old (99.1 is wanted): "
        f"pip install -r {requirements}"
    )
    packages.insist({"pyyaml"}, requirements)


def test_an_old_huggingface_hub_ends_a_run_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    old = tmp_path / "packages/huggingface_hub-1.33.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: huggingface_hub\nVersion: 1.33.0\n")
    command = [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", "-n", "-d", tmp_path]
    env = os.environ | {"PYTHONPATH": str(old.parent)}
    done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode and "Traceback" not in said
    assert "huggingface_hub 1.33.0 is too old (2.4.0 is wanted): pip install -r " in said


# From below: what is above may know what is below, never the other way.
FLOORS = (
    "units",
    "errors",
    "formats",
    "mixes",
    "record",
    "trust",
    "store",
    "hub",
    "flags",
    "cards",
    "keys",
    "studies",
    "stages",
)
FLOORS += ("config", "planning", "forecast", "report", "run")


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, at its beginning or in functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_what_is_below_knows_nothing_of_what_is_above() -> None:
    lib = ROOT / "scripts/lib"
    rooms = {path.stem for path in lib.iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert rooms == set(FLOORS)
    programs = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for path in lib.glob("*/*.py"):
        floor = FLOORS.index(path.parent.name)
        for name in imports_of(path):
            package, _, room = name.partition(".")
            assert package not in programs, f"{path}: a module imports the program {package}"
            if package == "lib":
                above = FLOORS.index(room.split(".")[0]) > floor
                assert not above, f"{path.relative_to(ROOT)} imports {name}, which is above it"


def test_few_files_name_a_family_that_is_not_theirs() -> None:
    """The registry, and the Snakefile that includes its rules; its own, tests and docs aside."""
    aside = (":!tests", ":!docs", ":!*.md", ":!config", ":!*exl2*", ":!*exllamav2*")
    named = subprocess.run(
        ["git", "grep", "-li", "exl2", "--", *aside],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert named == ["Snakefile", "scripts/lib/cards/registry.py"]

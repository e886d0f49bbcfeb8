"""Kills, crashes and second runs: nothing half-made is taken for done, and no two writers meet."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lib.record import recipe as recipes
from project import Project, of, sha256

STATIC = "results/Mix/gguf/Mix-static.gguf"
# A run is killed when each of these first appears: where an artifact is being made.
MOMENTS = (
    "results/Mix/.safetensors.building/*-*/safetensors",
    "results/Mix/gguf/.Mix-BF16.gguf.building/*-*",
    "results/Mix/gguf/.Mix-BF16.gguf.building/*-*/Mix-BF16.gguf",
    "results/Mix/.imatrix.dat.building/*-*",
    "results/Mix/gguf/.Mix-mixed.gguf.building/*-*/Mix-mixed.gguf",
    "results/Mix/shards/.Q8_0.building/*-*",
    "results/Mix/evaluation/.mixed.json.building/*-*",
    "results/Mix/report/.quality.csv.building/*-*",
)


class Run:
    """Snakemake in a process group of its own, its output in a file."""

    def __init__(self, project: Project, *arguments: str):
        self.output = project.path.with_name(f"output-{time.time_ns()}.txt")
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                project.command(*arguments),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def until(self, happened: Callable[[], object], seconds: float = 120) -> bool:
        """Wait; False where the run ended without it."""
        end = time.monotonic() + seconds
        while not happened():
            if self.process.poll() is not None:
                return bool(happened())
            assert time.monotonic() < end, self.text
            time.sleep(0.002)
        return True

    def kill(self) -> None:
        """kill -9 of Snakemake and all that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        return self.process.wait(300)


@pytest.fixture
def start(project: Project) -> Iterator[Callable[..., Run]]:
    """Start runs; none is left afterwards."""
    runs: list[Run] = []

    def run(*arguments: str, of: Project = project) -> Run:
        runs.append(Run(of, *arguments))
        return runs[-1]

    yield run
    for each in runs:
        try:
            os.killpg(each.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        each.process.wait()


class Gate:
    """A llama-quantize that waits until it may go on; it counts how often it was started."""

    def __init__(self, project: Project):
        self.tool = project / "resources/llama.cpp/bin/llama-quantize"
        self.real = self.tool.resolve()
        self.started, self.go = project / "started", project / "go"
        wait = f'while [ ! -e "{self.go}" ]; do sleep 0.05; done'
        self.replace(f'echo $$ >> "{self.started}"\n{wait}\nexec "{self.real}" "$@"')

    def replace(self, script: str) -> None:
        """Put a script in the tool's place. Predictions of sizes go on with the tool."""
        predict = f'case "$*" in *--dry-run*) exec "{self.real}" "$@";; esac'
        self.tool.unlink()
        self.tool.write_text(f"#!/bin/sh\n{predict}\n{script}\n")
        self.tool.chmod(0o755)

    def open(self) -> None:
        self.go.touch()

    @property
    def starts(self) -> int:
        return len(self.started.read_text().split()) if self.started.exists() else 0


@pytest.fixture
def gate(project: Project) -> Gate:
    """One quant to be made, which waits for the test."""
    (project / STATIC).unlink()
    return Gate(project)


def litter(project: Project) -> list[Path]:
    """What steps leave where they work."""
    tops = [project / "results", project / "resources"]
    return [path for top in tops for path in top.rglob(".*") if path.name != ".snakemake_timestamp"]


def whole(project: Project) -> int:
    """Every artifact that has a record has the bytes that it says; how many these are."""
    count = 0
    for path in project.path.glob("results/**/*.recipe.json"):
        name = path.relative_to(project.path).as_posix().removesuffix(".recipe.json")
        data = json.loads(path.read_text())
        for file, (size, digest) in data.get("files", {}).items():
            made = project / name / file
            assert (made.stat().st_size, sha256(made)) == (size, digest), made
        if not data.get("files") and (project / name).exists():
            assert sha256(project / name) == data["sha256"], name
        count += 1
    return count


@pytest.mark.slow
def test_a_build_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(
    built, project, start
):
    subprocess.run(["rm", "-rf", project / "results", project / "resources/models"], check=True)
    kills, finished = 0, 0
    for moment in MOMENTS:
        run = start("--config", "model=Mix")
        if run.until(lambda moment=moment: any(project.path.glob(moment))):
            run.kill()
            kills += 1
        now = whole(project)
        assert now >= finished  # what was finished stays
        finished = now
    assert kills >= 5
    project.build("--config", "model=Mix")
    expected = {path: sha for path, sha in built.digests().items() if "/Mix/" in path}
    assert project.digests() == expected
    assert project.plan("--config", "model=Mix") == set()
    assert litter(project) == []


def test_two_runs_in_one_directory_the_second_is_refused_in_one_line(project, start, gate):
    first = start(STATIC)
    assert first.until(lambda: gate.starts)
    second = start(STATIC)
    assert second.end() != 0
    assert second.text.splitlines()[-1].startswith(f"Another run is at work in {project.path}.")
    assert "Traceback" not in second.text
    assert 'File "' not in second.text
    gate.open()
    assert first.end() == 0, first.text
    assert gate.starts == 1


def test_a_dry_run_beside_a_run_is_allowed_and_changes_nothing_of_it(project, start, gate):
    first = start()
    assert first.until(lambda: gate.starts)
    project.model("Mix")["gguf"]["quants"][2]["type"] = "Q5_0"
    assert STATIC in project.plan()
    project.model("Mix")["gguf"]["quants"][2]["type"] = "Q4_0"
    gate.open()
    assert first.end() == 0, first.text
    assert recipes.read(STATIC, project.path).recipe["options"]["type"] == "Q4_0"
    assert project.plan() == set()


def test_a_killed_runs_orphans_and_the_next_run_do_not_write_one_file_at_once(
    built, project, start, gate
):
    first = start(STATIC)
    assert first.until(lambda: gate.starts)
    first.process.kill()  # Snakemake alone
    first.process.wait()
    second = start(STATIC)
    assert second.until(lambda: f"wait    {STATIC}" in second.text)
    gate.open()
    assert second.end() == 0, second.text
    assert gate.starts == 1
    assert f"ready   {STATIC}" in second.text
    assert sha256(project / STATIC) == sha256(built / STATIC)
    assert project.plan() == set()
    assert litter(project) == []


def test_ctrl_c_leaves_nothing_half_made(built, project, start, gate):
    run = start(STATIC)
    assert run.until(lambda: gate.starts)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end() != 0
    gate.open()
    assert not (project / STATIC).exists()
    assert project.plan() == {STATIC}
    project.build()
    assert sha256(project / STATIC) == sha256(built / STATIC)
    assert litter(project) == []


def test_the_config_may_be_changed_while_a_build_is_interrupted(project, start, gate):
    run = start()
    assert run.until(lambda: gate.starts)
    run.kill()
    gate.open()
    project.quants[2]["type"] = "Q5_0"
    expected = of("Mix", "static", "static/shards", "base", "static/evaluation", "report", "card")
    assert project.plan() == expected
    project.build()
    byhand = project / "byhand.gguf"
    command = [gate.real, "results/Mix/gguf/Mix-BF16.gguf", byhand, "Q5_0", "1"]
    subprocess.run(command, cwd=project.path, check=True, capture_output=True)
    assert sha256(project / STATIC) == sha256(byhand)
    assert project.plan() == set()


def test_a_step_refuses_an_input_that_was_changed_under_it(project, start, gate):
    """The conversion is replaced while the quant is made: by another checkout, or a backup."""
    run = start(STATIC)
    assert run.until(lambda: gate.starts)
    record = recipes.read("results/Mix/gguf/Mix-BF16.gguf", project.path)
    path = project / "results/Mix/gguf/Mix-BF16.gguf.recipe.json"
    path.write_text(path.read_text().replace(record.digest, "0" * 64))
    gate.open()
    assert run.end() != 0
    assert "results/Mix/gguf/Mix-BF16.gguf is not what it was when this run was planned" in run.text
    assert not (project / STATIC).exists()
    assert litter(project) == []


def test_a_failing_tool_shows_its_last_lines_and_leaves_nothing(built, project, gate):
    gate.replace(
        'for word; do case "$word" in *building*) echo half > "$word";; esac; done\n'
        'echo "no space left" >&2\nexit 3'
    )
    output = project.run(check=False)
    assert f"FAILED  {STATIC}" in output
    assert "logs/Mix/gguf/Mix-static.gguf.log" in output
    assert "    no space left" in output
    assert not (project / STATIC).exists()
    assert litter(project) == []
    gate.tool.unlink()
    gate.tool.symlink_to(gate.real)
    project.build()
    assert sha256(project / STATIC) == sha256(built / STATIC)
    assert project.plan() == set()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 0", "no such file"),
        ('for word; do case "$word" in *building*) : > "$word";; esac; done', "an empty file"),
    ],
    ids=["no file", "an empty file"],
)
def test_a_tool_that_says_it_went_well_but_made_nothing_is_not_believed(
    project, gate, script, words
):
    gate.replace(script)
    output = project.run(STATIC, check=False)
    assert f"FAILED  {STATIC}: the step ended well but made {words}" in output
    assert not (project / STATIC).exists()
    assert project.plan() == {STATIC}


def test_what_killed_runs_left_is_removed_but_not_what_still_runs(project):
    gone, kept = (
        project / f"results/Mix/gguf/.Mix-{name}.gguf.building" for name in ("gone", "kept")
    )
    for place in (gone, kept):
        (place / "host-1").mkdir(parents=True)
        (place / "host-1/half.gguf").write_text("half")
    (project / "results/Plain/README.md").unlink()
    with (kept / "hold").open("w") as hold:
        fcntl.flock(hold, fcntl.LOCK_EX)
        project.build()
    assert not gone.exists()
    assert (kept / "host-1/half.gguf").exists()

"""Kills, crashes and second runs: nothing half-made is taken for done, and no two writers meet."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from campaign.clocks import YEAR, Clock
from lib.record import recipe as recipes
from lib.record.layout import times_file
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


def test_a_source_that_is_replaced_while_it_is_read_is_told_and_nothing_is_made_of_it(
    built, edited
):
    """Put back afterwards, with the old date even, it would have the recipe of what was made."""
    made = [f"results/Plain/gguf/Plain-{form}.gguf" for form in ("BF16", "Q4_0")]
    for path in made:
        (edited / path).unlink()
    shutil.rmtree(edited / "resources/models")  # links into the project that this is a copy of
    frame = edited.repository / "scripts/step.sh"
    source, other = (edited / f"m/{name}/model.safetensors" for name in ("prose", "code"))
    replace = f'    [ "$1" != convert.py ] || cp "{other}" "{source}"\n'
    text = frame.read_text()
    frame.write_text(text.replace("script() {\n", f"script() {{\n{replace}"))
    content, stat = source.read_bytes(), source.stat()
    assert f"{source} was changed since this run was planned" in edited.run(check=False)
    assert not any((edited / path).exists() for path in made)
    frame.write_text(text)
    source.write_bytes(content)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    edited.build()
    assert [sha256(edited / path) for path in made] == [sha256(built / path) for path in made]


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
        ("exit 0", "No such file"),
        ('for word; do case "$word" in *building*) : > "$word";; esac; done', "not a GGUF file"),
        ('"$REAL" "$@" && truncate --size=-9000 "$OUT"', "it ends before the data of its tensor"),
    ],
    ids=["no file", "an empty file", "a part of the file"],
)
def test_a_tool_that_says_it_went_well_is_not_believed(project, gate, script, words):
    gate.replace(f"REAL={gate.real}\n{script}")
    output = project.run(STATIC, check=False)
    assert f"FAILED  {STATIC}, after" in output and words in output
    assert not (project / STATIC).exists()
    assert project.plan() == {STATIC}


def test_after_a_crash_of_the_machine_a_wanted_recipe_may_be_empty(built, project):
    """Its date reached the disk, its content did not (ext4). Every later run was refused."""
    (project / STATIC).unlink()
    assert project.plan() == {STATIC}
    (left,) = (project / f".snakemake/quantmill/wanted/{STATIC}").glob("*/recipe.json")
    date = left.stat().st_mtime
    left.write_text("")
    os.utime(left, (date, date))
    project.build()
    assert sha256(project / STATIC) == sha256(built / STATIC)


def test_base_logits_that_a_killed_run_has_left_are_removed_by_the_next(project):
    """Snakemake deletes them after their last use, and may be killed before."""
    logits = project / "results/Mix/evaluation/base.kld"
    size = recipes.read("results/Mix/evaluation/base.kld", project.path).bytes
    logits.write_bytes(bytes(size))
    (project / "results/Plain/README.md").unlink()
    said = project.build()
    assert "removed results/Mix/evaluation/base.kld: nothing needs it any more" in said
    assert not logits.exists()
    assert project.plan() == set()


def test_a_file_that_a_tool_still_writes_to_when_it_has_ended_is_not_taken(project, gate):
    gate.replace(f'"{gate.real}" "$@"; status=$?\n(sleep 20; :) >> "$OUT" &\nexit $status')
    output = project.run(STATIC, check=False)
    words = "the step ended well, but Mix-static.gguf is still being written"
    assert f"FAILED  {STATIC}: {words}" in output
    assert not (project / STATIC).exists()


def test_a_step_that_makes_no_progress_is_told_of_and_ended_if_that_is_asked_for(
    built, project, start, gate
):
    gate.replace("exec sleep 1000")
    run = start(STATIC, "--config", "end_hung=0.05")
    assert run.until(lambda: "ended " in run.text, 60), run.text
    assert run.end() != 0
    assert f"ended   {STATIC}: no progress for" in run.text
    assert f"FAILED  {STATIC}, after" in run.text
    assert litter(project) == []
    gate.tool.unlink()
    gate.tool.symlink_to(gate.real)
    project.build()
    assert sha256(project / STATIC) == sha256(built / STATIC)


def test_where_a_file_system_has_no_locks_that_is_said_and_it_is_built(
    built, project, gate, tmp_path
):
    """As on Lustre without -o flock."""
    source, library = tmp_path / "no_locks.c", tmp_path / "no_locks.so"
    source.write_text(
        "#include <errno.h>\nint flock(int file, int how) { errno = ENOSYS; return -1; }\n"
    )
    subprocess.run(["c++", "-xc", "-shared", "-fPIC", source, "-o", library], check=True)
    gate.open()
    done = subprocess.run(
        project.command(STATIC),
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "this file system has no locks" in done.stdout + done.stderr
    assert sha256(project / STATIC) == sha256(built / STATIC)


def test_what_was_made_while_a_clock_was_ahead_can_be_built_from(project):
    """Snakemake fails a job whose output is older than an input, and deletes what it has made."""
    ahead = time.time() + 3600
    for path in (project / "results").rglob("*"):
        os.utime(path, (ahead, ahead), follow_symlinks=False)
    (project / STATIC).unlink()
    project.build()
    assert project.plan() == set()


def test_a_clock_that_is_set_while_a_step_runs_does_not_reach_the_forecasts(
    project, start, gate, tmp_path, monkeypatch
):
    clock = Clock(tmp_path)
    for name, value in clock.variables.items():
        monkeypatch.setenv(name, value)
    run = start(STATIC)
    assert run.until(lambda: gate.starts)
    clock.set(YEAR)
    gate.open()
    assert run.end() == 0, run.text
    _, seconds = map(float, (project / times_file(STATIC)).read_text().split())
    assert 0 < seconds < 120


def test_what_killed_runs_left_is_removed_but_not_what_still_runs(project):
    gone, kept = (
        project / f"results/Mix/gguf/.Mix-{name}.gguf.building" for name in ("gone", "kept")
    )
    for place in (gone, kept):
        (place / "host-1").mkdir(parents=True)
        (place / "host-1/half.gguf").write_text("half")
    parts = [project / f"results/{place}/.x.recipe.json.7.part" for place in ("Mix", "Mix/gguf")]
    for part in parts:
        part.write_text("half")
    (project / "results/Plain/README.md").unlink()
    with (kept / "hold").open("w") as hold:
        fcntl.flock(hold, fcntl.LOCK_EX)
        project.build()
    assert not gone.exists()
    assert [part.exists() for part in parts] == [False, True]
    assert (kept / "host-1/half.gguf").exists()

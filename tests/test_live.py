"""`snakemake live`: a build that is watched from outside."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lib.forecast.remaining import Begun, Pace, as_it_stands, seconds_left
from lib.forecast.schedule import Job, simulate
from lib.run.watch import part_done
from lib.stages.registry import STAGES
from project import ROOT, command_line, snakemake

# From the logs of real steps, cut off where they were while the step ran.
LOGS = {
    "imatrix": (
        "0.00.038.743 I compute_imatrix: computing over 40 chunks, n_ctx=512, batch_size=2048, "
        "n_seq=4\n0.00.181.441 I compute_imatrix: 0.14 seconds per pass - ETA 0.02 minutes\n"
        "[1]152.3903,[2]168.4299,[3]177.3809,[4]172.9592,[5]181.1115,[6]196.2525,[7]172.2058,"
        "[8]166.0676,\n[9]170.3619,[10]163.6281,",
        10 / 40,
    ),
    "base_logits": (
        "0.00.040.700 I perplexity: tokenization took 17.339 ms\n0.00.040.779 I perplexity: "
        "calculating perplexity over 16 chunks, n_ctx=512, batch_size=2048, n_seq=4\n"
        "0.00.156.159 I perplexity: 0.12 seconds per pass - ETA 0.00 minutes\n"
        "[1]346.4840,[2]235.8345,[3]231.0684,[4]194.4621,",
        4 / 16,
    ),
    "evaluate": (
        "0.00.034.842 I perplexity: calculating perplexity over 16 chunks, n_ctx=512, "
        "batch_size=2048, n_seq=4\n",
        0.0,
    ),
    "evaluate_task": (
        "measuring 30 tasks\n0.00.021.370 I Read 42545 bytes from binary file /tmp/x\n"
        "1\t100.00000000\n2\t50.00000000\n3\t66.66666667\n",
        3 / 30,
    ),
    "demo_finetune": ("step 40/120 loss 4.712 5,113 tokens/s\nstep 60/120 loss 4.6", 60 / 120),
    "source": (
        "\n\nReconstructing (incomplete total...):  42%|████▏     | 41.9MB /  100MB"
        "            \x1b[A\n\nDownloading bytes: ████▏     | 41.9MB            \x1b[A\n",
        0.42,
    ),
}


@pytest.mark.parametrize("rule", LOGS)
def test_a_step_shows_how_far_it_is_by_its_tools_own_log(rule):
    log, part = LOGS[rule]
    assert part_done(STAGES[rule].counted, [log]) == part


def test_an_imatrix_on_two_gpus_shows_both_ranges_together():
    ranges = ["computing over 100 chunks\n[1]5.1,[2]5.0,", "computing over 60 chunks\n[1]4.2,"]
    assert part_done(STAGES["imatrix"].counted, ["no number here", *ranges]) == 3 / 160


def test_a_log_without_numbers_shows_no_progress():
    assert part_done(STAGES["source"].counted, ["fetched from the cache\n"]) is None
    assert part_done(STAGES["imatrix"].counted, []) is None


def chain(**of_gguf) -> list[Job]:
    """A conversion that is deleted afterwards, and two quants of it; a thread each."""
    quants = [Job(f"q{i}", 10, inputs=["gguf"], seconds=10, kind="quantize Q4_0") for i in (1, 2)]
    return [Job("gguf", 100, temporary=True, seconds=20, **of_gguf), *quants]


def test_what_is_left_follows_from_what_is_done():
    jobs = chain()
    assert simulate(jobs, 1).seconds == 40
    half = as_it_stands(jobs, {}, {"gguf": Begun(10.0, 0.5, 50)}, Pace(), 1)
    assert simulate(half, 1).seconds == pytest.approx(30)
    done = as_it_stands(jobs, {"gguf"}, {"q1": Begun(6.0, None, 0)}, Pace(), 1)
    assert simulate(done, 1).seconds == pytest.approx(14)
    assert seconds_left([job for job in done if job.path == "q1"], 1)["q1"] == pytest.approx(4)


def test_a_job_that_is_slower_than_expected_is_believed_when_it_says_so():
    (job, *_) = as_it_stands(chain(), {}, {"gguf": Begun(60.0, 0.5, 50)}, Pace(), 1)
    assert seconds_left([job], 1)["gguf"] == pytest.approx(60)
    (job, *_) = as_it_stands(chain(), {}, {"gguf": Begun(60.0, None, 50)}, Pace(), 1)
    assert 0 < seconds_left([job], 1)["gguf"] < 5  # overdue: any moment


def test_what_was_built_corrects_what_was_expected():
    jobs, pace = chain(), Pace()
    pace.learn(jobs[1], cpu=30.0)  # three times as long as the plan said
    left = as_it_stands(jobs, {"gguf", "q1"}, {}, pace, 1)
    assert simulate(left, 1).seconds == pytest.approx(30)


def test_the_disk_is_told_from_now_on():
    jobs = chain()
    assert simulate(jobs, 1).bytes == 120
    half = as_it_stands(jobs, {}, {"gguf": Begun(10.0, 0.5, 60)}, Pace(), 1)
    assert simulate(half, 1).bytes == 60  # 40 of the conversion, and the quants beside it
    done = [replace(job, done=1) if job.path == "gguf" else job for job in jobs]
    assert simulate(done, 1).bytes == 20
    other = [Job("other", 95, inputs=["q2"], reads=0, seconds=1)]
    assert simulate([*done, *other], 1).bytes == 20  # the conversion is deleted before


@pytest.fixture
def build(demo: Path, toolchain: Path, tmp_path: Path) -> Iterator[Path]:
    """A working directory with a model of the demo, whose imatrix takes 20 seconds or so."""
    here = tmp_path / "work"
    shutil.copytree(demo / "base", here / "base")
    text = (demo / "text/train-code.txt").read_text()
    (here / "calibration.txt").write_text(text)
    model = {
        "source": "./base",
        "gguf": {"imatrix": {"context": 256, "chunks": 1400}, "quants": ["Q4_K_M", "IQ2_XS"]},
    }
    config = {"corpora": {"calibration": {"path": "calibration.txt"}}, "models": {"M": model}}
    (here / "config").mkdir()
    (here / "config/config.yaml").write_text(yaml.safe_dump(config))
    return here


def start(here: Path) -> subprocess.Popen:
    """A build, with its output in a file, in a process group of its own."""
    with (here / "output.txt").open("w") as file:
        return subprocess.Popen(
            command_line(here), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def live(here: Path) -> str:
    done = snakemake(here, "live", "--quiet", "all")
    assert done.returncode == 0, done.stdout
    return done.stdout


def until(here: Path, process: subprocess.Popen, pattern: str) -> str:
    """What `live` shows once it shows this; fails when the build ends before."""
    while True:
        shown = live(here)
        if re.search(pattern, shown):
            return shown
        assert process.poll() is None, (here / "output.txt").read_text() + shown


def on_terminal(here: Path, seconds: float) -> tuple[str, int]:
    """What `snakemake live` writes on a terminal, where Ctrl-C is typed then; and its status."""
    pid, terminal = pty.fork()
    if not pid:
        command = [*command_line(here), "live"]
        os.execv(sys.executable, command)
    shown, end, typed = b"", time.monotonic() + seconds, False
    while True:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 1 << 16)
            except OSError:  # the terminal's other side is closed
                break
        if time.monotonic() > end and not typed:
            os.write(terminal, b"\x03")
            typed = True
    return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
def test_a_build_is_watched_while_it_runs_is_killed_and_ends(build):
    assert "No build has begun in this directory" in live(build)
    process = start(build)
    try:
        shown = until(build, process, r"M/imatrix.dat +\d+ s +\d+ .* +[1-9]\d?%")
        assert re.search(
            r"\d of 9 artifacts built in .*; about \d+ \w+ more, until \w+ \d\d:\d\d", shown
        ), shown
        assert re.search(r"waiting +2 quantize, 1 report, 1 card *$", shown, re.M), shown
        assert re.search(r"disk +[\d.]+ GB free; [\d.]+ MB more than now at the fullest", shown), (
            shown
        )
        shown, status = on_terminal(build, 8)
        assert status == 0 and "WorkflowError" not in shown and "imatrix.dat" in shown, shown
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shown = live(build)
    assert re.search(r"^The build was killed: \d of 9 artifacts built.$", shown, re.M), shown
    assert "The same command again goes on from there." in shown
    assert re.search(r"^cut off +results/M/", shown, re.M), shown

    process = start(build)
    try:
        until(build, process, "running")
        shown, status = on_terminal(build, 300)
    finally:
        process.wait(300)
    assert status == 0 and "The build has ended well" in shown, shown
    assert process.returncode == 0
    files = {path: path.stat().st_mtime_ns for path in (build / "results").rglob("*")}
    assert "The build has ended well: " in live(build), "it is said afterwards too"
    assert files == {path: path.stat().st_mtime_ns for path in (build / "results").rglob("*")}


def test_a_build_that_fails_says_which_artifact_and_where_its_log_is(project):
    project.quants.append("Q3_K_S")
    project.write()
    tool = project / "resources/llama.cpp/bin/llama-quantize"
    real = tool.resolve()
    tool.unlink()
    tool.write_text(f'#!/bin/sh\ncase "$*" in *--dry-run*) exec "{real}" "$@";; esac\nexit 7\n')
    tool.chmod(0o755)
    project.run("quants", check=False)
    shown = project.run("live", "--quiet", "all")
    assert "The build has failed: 0 of 1 artifact built." in shown
    log = "logs/Mix/gguf/Mix-Q3_K_S.gguf.log"
    assert re.search(f"^failed +results/Mix/gguf/Mix-Q3_K_S.gguf: see {log}", shown, re.M), shown


def test_a_damaged_plan_is_one_line(tmp_path):
    (tmp_path / ".snakemake/quantmill").mkdir(parents=True)
    (tmp_path / ".snakemake/quantmill/build.json").write_text('{"jobs": [')
    command = [sys.executable, ROOT / "scripts/ask_live.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "live: .snakemake/quantmill/build.json: the plan of the build is damaged"
    )


def test_what_builds_nothing_does_not_forget_the_last_build_and_is_none(project):
    (project / "results/Mix/gguf/Mix-Q8_0.gguf").unlink()
    project.build("quants")
    project.run("status")
    assert "The build has ended well: 1 of 1 artifact" in project.run("live", "--quiet", "all")

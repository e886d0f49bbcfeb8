"""How steps share a machine: its cores, its GPUs, and what that means for a build's time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.forecast.machine import Machine, rules_on_gpu
from lib.forecast.schedule import Job, simulate
from lib.stages.registry import STAGES
from project import ROOT

SCRIPTS = ROOT / "scripts"
GB = 10**9


@pytest.mark.parametrize(
    ("rule", "size", "cores", "jobs", "threads"),
    [
        ("quantize", 3 * GB, 16, 1, 16),  # one quant alone has all cores
        ("quantize", 3 * GB, 16, 30, 4),
        ("quantize", 140 * GB, 16, 30, 8),  # two at a time: each needs much memory
        ("quantize", GB // 100, 16, 30, 1),  # many small ones one each
        ("quantize", GB // 100, 16, 4, 4),
        ("imatrix", 3 * GB, 16, 1, 16),
        ("evaluate", 3 * GB, 2, 12, 1),
        ("merge", 3 * GB, 16, 1, 4),
        ("merge", 3 * GB, 2, 1, 1),
        ("llama_cpp", 0, 16, 1, 1),  # never waits behind other work
    ],
)
def test_a_jobs_share_of_the_cores(rule, size, cores, jobs, threads):
    assert Machine(cores).threads(STAGES[rule], size, jobs) == threads


def test_where_the_gpu_works_the_cores_are_left_to_others():
    machine = Machine(16, frozenset({"evaluate"}))
    assert machine.threads(STAGES["evaluate"], 3 * GB, 1) == 2
    assert machine.threads(STAGES["imatrix"], 3 * GB, 1) == 16


def test_a_clusters_job_asks_for_the_same_in_every_process():
    assert Machine().threads(STAGES["quantize"], 3 * GB, 1) == 4
    assert Machine().threads(STAGES["quantize"], 3 * GB, 200) == 4
    assert Machine().threads(STAGES["quantize"], 140 * GB, 200) == 8


def test_a_machine_is_the_same_after_json():
    machine = Machine(16, frozenset({"merge", "imatrix"}), 80_000)
    assert Machine.read(machine.to_json()) == machine


def test_a_profile_gives_rules_a_gpu_also_those_that_reuse_another():
    class Given:
        def __init__(self, raw):
            self.raw = raw

    given = {"merge_reclaimed": {"gpu": Given(1)}, "imatrix": {"gpu": Given(0)}}
    given["evaluate"] = {"mem_mb": Given(9000)}
    assert rules_on_gpu(given) == {"merge"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux keeps to processors")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one processor")
def test_a_run_on_fewer_cores_keeps_to_them():
    code = "from lib.forecast.machine import keep_to; keep_to({}); import os; "
    code += "print(len(os.sched_getaffinity(0)))"
    for cores, expected in ((1, 1), (1000, len(os.sched_getaffinity(0)))):
        command = [sys.executable, "-c", code.format(cores)]
        done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, check=True)
        assert int(done.stdout) == expected


# GPUs --------------------------------------------------------------------------------------------

NVIDIA_SMI = """#!/bin/sh
echo "0, GPU-{pid}-a, 1000"
echo "1, GPU-{pid}-b, 1000"
"""


def together(tmp_path: Path, *steps: str) -> list[str]:
    """The lines that steps print which run side by side, on two GPUs of 1000 MiB each."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(NVIDIA_SMI.format(pid=os.getpid()))
    smi.chmod(0o755)
    script = f"set -euo pipefail; . {SCRIPTS / 'gpus.sh'}; "
    script += " ".join(f"({step}) & sleep 0.3;" for step in steps) + " wait"
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_steps_share_a_gpu_by_its_memory(tmp_path):
    said = "echo $CUDA_VISIBLE_DEVICES; sleep 1.5; echo end"
    lines = together(tmp_path, *(f"gpus 1 {mb}; {said}" for mb in (600, 300, 600, 300)))
    # The first GPU has room for 600 and 300, then the second one.
    assert lines[:4] == ["0", "0", "1", "1"]


def test_a_step_waits_until_enough_memory_is_free(tmp_path):
    lines = together(tmp_path, "gpus 2 1800; sleep 1; echo first", "gpus 1 200; echo second")
    assert lines == ["first", "second"]


def test_a_measurement_of_speed_has_all_gpus_for_itself(tmp_path):
    steps = "gpus 1 100; sleep 1; echo first", "gpus all; echo $CUDA_VISIBLE_DEVICES"
    assert together(tmp_path, *steps) == ["first", "0,1"]


def test_a_step_that_is_larger_than_the_gpu_has_it_for_itself(tmp_path):
    lines = together(
        tmp_path,
        "gpus 1 5000; echo $CUDA_VISIBLE_DEVICES; sleep 1",
        "gpus 1 100; echo $CUDA_VISIBLE_DEVICES",
    )
    assert lines == ["0", "1"]


def test_a_killed_step_gives_its_memory_back(tmp_path):
    lines = together(tmp_path, "gpus 2 2000; kill -9 $BASHPID", "gpus 2 2000; echo next")
    assert lines == ["next"]


# The schedule ------------------------------------------------------------------------------------


def test_jobs_that_can_use_all_cores_share_them():
    """Four at a time, each on 16 cores if it can: the last one gets them all."""
    jobs = [Job(f"q{n}", 1, threads=4, width=16, seconds=10) for n in range(5)]
    assert simulate(jobs, 16).seconds == pytest.approx(50)
    # On a fixed share of 4 cores, as jobs with threads of their own are, the fifth is alone.
    fixed = [Job(f"q{n}", 1, threads=4, width=4, seconds=40) for n in range(5)]
    assert simulate(fixed, 16).seconds == pytest.approx(80)


def test_a_gpu_is_shared_by_its_memory_in_the_forecast_too():
    jobs = [Job(f"e{n}", 1, gpu_mb=600, seconds=10) for n in range(3)]
    assert simulate(jobs, 16, gpu_mb=1300).seconds == pytest.approx(20)
    assert simulate(jobs, 16, gpu_mb=1000).seconds == pytest.approx(30)
    assert simulate(jobs, 16, gpu_mb=100).seconds == pytest.approx(30)  # never stuck


def test_the_critical_path_names_what_the_end_waited_for():
    jobs = [
        Job("merge", 1, seconds=30),
        Job("bf16", 1, inputs=("merge",), seconds=20),
        Job("q8", 1, inputs=("bf16",), seconds=5),
        Job("iq4", 1, inputs=("bf16",), seconds=50),
        Job("report", 1, inputs=("q8", "iq4"), seconds=1),
    ]
    course = simulate(jobs, 16)
    assert [path for path, _ in course.critical] == ["merge", "bf16", "iq4", "report"]
    assert course.seconds == pytest.approx(sum(seconds for _, seconds in course.critical))


def test_a_job_of_a_higher_priority_goes_first():
    jobs = [Job("large", 1, reads=9, seconds=5), Job("imatrix", 1, priority=1, seconds=1)]
    jobs.append(Job("quant", 1, inputs=("imatrix",), seconds=1))
    assert simulate(jobs, 1).critical[0][0] == "imatrix"

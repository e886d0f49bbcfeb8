"""Memory that ends: the kernel kills a process of the build that has asked for too much.

The build, or one of its steps from a random moment on, runs in a control group with a random limit.
Root only; elsewhere there are no cases.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil

from campaign import Case
from campaign.builds import Run, after, awaited, failed, failed_steps, prepared, wait

GROUPS = Path("/sys/fs/cgroup/memory")  # of version 1
LEAST, MOST = 8, 250  # MiB


def cases(random: Random, work: Path) -> Iterator[Case]:
    if os.getuid() or not (GROUPS / "memory.limit_in_bytes").exists():
        return
    new, expected, seconds = prepared()
    for number in range(1_000_000_000):
        here, group = work / f"run{number}", GROUPS / f"quantmill-{os.getpid()}-{number}"
        shutil.copytree(new, here, symlinks=True)
        group.mkdir()
        run = Run(here)
        if random.random() < 0.3:
            limited(group, random.randint(LEAST, MOST), [run.process.pid])
        else:
            wait(random, run, seconds)
            awaited(lambda run=run: steps(run) or run.ended)
            limited(group, random.randint(1, 40), steps(run))
        fault = failed(run, here)
        control = dict(line.split() for line in (group / "memory.oom_control").open())
        for process in (group / "cgroup.procs").read_text().split():  # those that still run
            with contextlib.suppress(ProcessLookupError):
                (GROUPS / "cgroup.procs").write_text(process)
        group.rmdir()
        killed = f"killed for memory: {failed_steps(run)}" if int(control["oom_kill"]) else None
        yield Case(killed or "memory enough", fault or after(here, expected))
        shutil.rmtree(here)


def steps(run: Run) -> list[int]:
    """The processes of the steps that are at work."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for shell in run.process.children():
            found += [shell.pid, *(process.pid for process in shell.children(recursive=True))]
    return found


def limited(group: Path, mebibytes: int, processes: list[int]) -> None:
    """Put processes, and what they start from now on, into a group with so much memory."""
    (group / "memory.limit_in_bytes").write_text(f"{mebibytes}M")
    for number in processes:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(number))

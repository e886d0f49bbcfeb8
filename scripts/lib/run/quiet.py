"""Steps that make no progress: noticed while a build runs, told, and ended if that was asked for.

A step is quiet while nothing changes: the files that it makes, its log and, if it runs on this
machine, the processor time of its processes and the bytes that they read and write. Of a step on
another machine only the files are seen, which a tool may leave alone for long: there the step's
expected time counts too, and nothing is ended (a scheduler's time limit does that).
"""

import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from lib.forecast.schedule import Job
from lib.planning.taking import say
from lib.record.layout import building_directory, log_file
from lib.units import duration

TOLD_S = 10 * 60  # of no progress, from which a step on this machine is told of
FAR_TOLD_S, FAR_TIMES = 60 * 60, 3  # on another: at least so long, and so many expected times
LOOK_S = 30
GRACE_S = 10  # from the request to end to the kill


@dataclass
class Step:
    """A step that is at work. shell: its process, if that runs on this machine.

    seen: what it had done when it was looked at last. since: when that changed, monotonic. told:
    whether it was told of.
    """

    attempt: Path
    shell: psutil.Process | None
    seen: tuple = ()
    since: float = 0.0
    told: bool = False


class Quiet(threading.Thread):
    """Looks at the steps of a build until the process ends.

    end_s: seconds without progress after which a step on this machine is ended; None: never.
    """

    def __init__(self, jobs: Iterable[Job], end_s: float | None):
        super().__init__(daemon=True)
        self.jobs, self.end_s = list(jobs), end_s
        self._steps: dict[str, Step] = {}

    def run(self) -> None:
        often = min(LOOK_S, self.end_s / 4) if self.end_s else LOOK_S
        while True:
            time.sleep(often)
            for job in self.jobs:
                with suppress(OSError, psutil.Error):  # it has just ended, or begun
                    self._look(job)

    def _look(self, job: Job) -> None:
        attempt = at_work(job.path)
        if attempt is None:
            self._steps.pop(job.path, None)
            return
        step = self._steps.get(job.path)
        if step is None or step.attempt != attempt:
            step = self._steps[job.path] = Step(attempt, shell_of(attempt))
        seen, now = progress(job.path, step), time.monotonic()
        if seen != step.seen:
            step.seen, step.since, step.told = seen, now, False
            return
        quiet = now - step.since
        if step.shell and self.end_s and quiet >= self.end_s:
            say(f"ended   {job.path}: no progress for {duration(quiet)} (end_hung)")
            end(step.shell)
        elif not step.told and quiet >= limit(step, job):
            step.told = True
            hint = "; --config end_hung=MINUTES ends such steps" if step.shell else ""
            say(
                f"quiet   {job.path}: no progress for {duration(quiet)}, and about "
                f"{duration(job.seconds)} were expected in all{hint}"
            )


def limit(step: Step, job: Job) -> float:
    """Seconds without progress from which a step is told of."""
    return TOLD_S if step.shell else max(FAR_TOLD_S, FAR_TIMES * job.seconds)


def at_work(artifact: str) -> Path | None:
    """The directory of the step that is at work on an artifact; None: there is none."""
    for mark in building_directory(artifact).glob("*/.inputs.json"):
        return mark.parent
    return None


def shell_of(attempt: Path) -> psutil.Process | None:
    """The shell of a step by its directory, HOST-PID (step.py); None: it is not on this machine."""
    host, _, number = attempt.name.rpartition("-")
    if host != os.uname().nodename:
        return None
    with suppress(psutil.Error):
        shell = psutil.Process(int(number))
        return shell if shell.name() == "bash" else None
    return None


def progress(artifact: str, step: Step) -> tuple:
    """What a step has done: another value if it went on."""
    files = [Path(log_file(artifact)), *step.attempt.rglob("*")]
    done = [(stat.st_size, stat.st_mtime_ns) for stat in map(_stat, sorted(files)) if stat]
    for process in family(step.shell) if step.shell else ():
        with suppress(psutil.Error), process.oneshot():
            moved = process.io_counters() if hasattr(process, "io_counters") else ()
            done.append((process.pid, *process.cpu_times()[:2], *moved))
    return tuple(done)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def family(shell: psutil.Process) -> list[psutil.Process]:
    """The processes of a step, its shell last."""
    return [*shell.children(recursive=True), shell]


def end(shell: psutil.Process) -> None:
    """End the tools of a step; its shell tells so and cleans up, or is ended too."""
    processes = family(shell)
    for process in processes[:-1]:
        with suppress(psutil.Error):
            process.terminate()
            process.resume()
    psutil.wait_procs(processes, GRACE_S)
    for process in processes:
        with suppress(psutil.Error):
            process.kill()

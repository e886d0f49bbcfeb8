"""Processes of a build that are killed, stopped or asked to end, at random moments.

The project is built from nothing again and again. A build is disturbed one to sixteen times, each
time by running the same command again; then the command runs undisturbed, and everything must be as
if nothing had happened. Meanwhile inotify tells of each file that is written under its final name
instead of being renamed to it.
"""

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil

from campaign import Case
from campaign.builds import (
    Run,
    Watch,
    awaited,
    finished,
    half_made,
    last_line,
    prepared,
    wait,
)

# How often a signal is sent, and to what: the processes of the build that it is sent to.
SIGNALS = {
    (signal.SIGKILL, "Snakemake alone"): 5,
    (signal.SIGKILL, "a step's shell"): 5,
    (signal.SIGKILL, "a tool"): 5,
    (signal.SIGKILL, "all processes"): 8,
    (signal.SIGTERM, "Snakemake alone"): 1,
    (signal.SIGTERM, "all processes"): 1,
    (signal.SIGINT, "all processes"): 2,
    (signal.SIGSTOP, "a tool"): 1,
    (signal.SIGSTOP, "all processes"): 1,
}
STOPPED = (1, 10, 120)  # seconds at most
BESIDE = 0.05  # the part of the trials that is a second run beside the first


def cases(random: Random, work: Path) -> Iterator[Case]:
    new, expected, seconds = prepared()
    for number in range(1_000_000_000):
        here = work / f"run{number}"
        shutil.copytree(new, here, symlinks=True)
        watch = Watch(here / "results", here / "resources")
        try:
            yield from disturbed(random, here, watch, seconds)
            yield Case("the same command again, undisturbed", finished(here, watch, expected))
        finally:
            watch.close()
        if number:
            shutil.rmtree(work / f"run{number - 1}", ignore_errors=True)


def disturbed(random: Random, here: Path, watch: Watch, seconds: float) -> Iterator[Case]:
    """One to sixteen runs with a signal each. seconds: of an undisturbed run."""
    for attempt in range(random.randint(1, 16)):
        (number, whom) = random.choices(list(SIGNALS), list(SIGNALS.values()))[0]
        run = Run(here)
        if not reached(random, run, watch, seconds if attempt == 0 else seconds / 2):
            break  # it was done before: what is left is the last check
        if random.random() < BESIDE:
            yield Case("another run of the directory beside it", beside(run, here))
            continue
        victims = awaited(lambda run=run, whom=whom: run.processes(whom) or run.ended)
        if victims in (None, True):
            run.wait()
            continue
        fault = struck(random, run, victims, number)
        kind = f"{number.name} of {whom}{', while it recovers' if attempt else ''}"
        yield Case(kind, fault or half_made(here, watch))


def reached(random: Random, run: Run, watch: Watch, seconds: float) -> bool:
    """Wait for a random moment: of time, or the next event of so many. False if it has ended."""
    if random.random() < 0.5:
        wait(random, run, seconds)
    else:
        events = watch.count + random.randint(1, 120)
        awaited(lambda: run.ended or watch.count >= events)
        time.sleep(random.random() * 0.02)
    return not run.ended


def struck(
    random: Random, run: Run, victims: list[psutil.Process], number: signal.Signals
) -> str | None:
    """Send a signal. What is wrong with how the run ends then; None: nothing."""
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    if number is signal.SIGSTOP:
        time.sleep(random.uniform(0.1, random.choice(STOPPED)))
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    if fault := run.wait():
        return fault
    if "Traceback" in run.output:
        return f"a traceback: {last_line(run.output)}"
    if number is signal.SIGSTOP and run.status:
        return f"a run that was only stopped failed: {last_line(run.output)}"
    return None


def beside(run: Run, here: Path) -> str | None:
    """Start a second run; what is wrong unless each ends well, or is told of the other."""
    other = Run(here, output=here / "other.txt")
    for each in (run, other):
        if fault := each.wait():
            return fault
        if each.status and "Another run is at work" not in each.output:
            return f"status {each.status}: {last_line(each.output)}"
    return half_made(here, None)

"""Clocks that are wrong: that jump while a build runs or between two runs, or differ by host.

A library before the C library's moves the time of day of the processes that load it, by seconds
that can be changed while they run; files are dated by the kernel, with the true time, as a file
server dates them. Where a clock is set between two runs, the dates of all files are moved. An hour
and a year, forward and back; and time zones.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

from campaign import Case
from campaign.builds import Run, after, failed, in_rounds, prepared, succeeded, wait
from lib.planning.handoff import NEWEST

HOUR, YEAR = 3600, 365 * 24 * 3600
OFFSETS = {"an hour": HOUR, "a year": YEAR}
ZONES = ("Pacific/Kiritimati", "Etc/GMT+12", "Asia/Kathmandu", "Europe/Berlin", "UTC")
CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    static volatile long *at;
    if (!at) {
        int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
        at = mmap(0, sizeof *at, PROT_READ, MAP_SHARED, file, 0);
        close(file);
    }
    return *at;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += offset();
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int status = syscall(SYS_gettimeofday, now, zone);
    now->tv_sec += offset();
    return status;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """A clock that can be set: `variables` give it to a process and all that it starts."""

    def __init__(self, work: Path):
        source, library = work / "clock.c", work / "clock.so"
        source.write_text(CLOCK)
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
        self.offset = work / "offset"
        self.offset.write_bytes(bytes(8))
        self.variables = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self.offset)}

    def set(self, seconds: int) -> None:
        with self.offset.open("r+b") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))


def cases(random: Random, work: Path) -> Iterator[Case]:
    new, expected, seconds = prepared()
    clock = Clock(work)
    kinds = {
        "jumps while it builds": jumps,
        "is set between two runs": is_set,
        "of the steps' host is off": differs,
        "has another zone": zone,
    }
    for number, name in in_rounds(random, kinds):
        here = work / f"run{number}"
        shutil.copytree(new, here, symlinks=True)
        words, offset = random.choice(list(OFFSETS.items()))
        sign, way = random.choice([(1, "forward"), (-1, "back")])
        clock.set(0)
        fault = kinds[name](random, here, clock, sign * offset, seconds)
        by = "" if kinds[name] is zone else f", {words} {way}"
        yield Case(
            f"a clock that {name}{by}".replace("that of", "of"),
            fault or after(here, expected) or lasted(here),
        )
        shutil.rmtree(here)


def jumps(random: Random, here: Path, clock: Clock, offset: int, seconds: float) -> str | None:
    run = Run(here, variables=clock.variables, anew=True)
    wait(random, run, seconds)
    clock.set(offset)
    return succeeded(run)


def is_set(random: Random, here: Path, clock: Clock, offset: int, seconds: float) -> str | None:
    run = Run(here)
    wait(random, run, seconds)
    run.kill()
    fault = failed(run, here)
    for top in (here / "results", here / "resources", here / ".snakemake", here / "m"):
        for path in top.rglob("*"):
            if (at := path.lstat()).st_mtime < NEWEST:
                dates = (at.st_atime + offset, at.st_mtime + offset)
                os.utime(path, dates, follow_symlinks=False)
    return fault


def differs(random: Random, here: Path, clock: Clock, offset: int, seconds: float) -> str | None:
    clock.set(offset)
    return succeeded(Run(here, variables=clock.variables))


def zone(random: Random, here: Path, clock: Clock, offset: int, seconds: float) -> str | None:
    first, second = random.sample(ZONES, 2)
    run = Run(here, variables={"TZ": first}, anew=True)
    wait(random, run, seconds)
    run.kill()
    return failed(run, here) or succeeded(Run(here, variables={"TZ": second}, anew=True))


def lasted(here: Path) -> str | None:
    """A step of which later forecasts will believe that it took a year, or less than no time."""
    for file in (here / "benchmarks").rglob("*.cpu"):
        cpu, seconds = map(float, file.read_text().split())
        if not (0 <= cpu < HOUR and 0 < seconds < HOUR):
            return f"{file.name}: {cpu} core seconds in {seconds} s"
    return None

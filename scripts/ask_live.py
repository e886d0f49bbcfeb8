"""Show the build that runs in the working directory: what runs and how far it is, what waits, how
long it takes, the disk, and on Slurm the queue.

In a terminal it is drawn anew every 2 seconds until the build ends (Ctrl-C leaves it earlier); else
it is shown once. It looks at files only, so it works on any machine that sees them. Times and sizes
are those of `snakemake plan`; what was built since corrects the times.
"""

import argparse
import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from heapq import nlargest

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lib.errors import program
from lib.forecast.remaining import as_it_stands, seconds_left
from lib.forecast.schedule import Course, Job, simulate
from lib.record.layout import log_file
from lib.run import build
from lib.run.hold import held_run
from lib.run.watch import Watch
from lib.units import count, duration, human

EVERY_S = 2
# Looking, and computing the course of what is left: so seldom that each takes 2% of a core.
SHARE = 0.02
QUEUE_S, PATIENCE_S = 15, 5  # between two questions to Slurm, and how long one may take
SHOWN, LONGEST = 12, 4  # running steps; waiting ones that are named
BAR, REST = 12, 44  # characters of a bar, and of all beside the name of what runs
WIDTH = 100  # of what is no terminal


class View:
    """A build as it is drawn."""

    def __init__(self, watch: Watch):
        self.watch, self.machine = watch, watch.build.machine
        self.jobs: dict[str, Job] = {}
        self.course, self.at, self.next, self.pause = Course(0, "", 0, 0.0), 0.0, 0.0, 0.0
        self.asked, self.queued = -QUEUE_S, ""

    def look(self) -> bool:
        """Look at the build again; whether it still runs."""
        # First: what is asked afterwards is then not older than the end.
        runs = not build.outcome() and held_run()
        begin = time.process_time()
        self.watch.look()
        jobs = as_it_stands(
            self.watch.build.jobs,
            self.watch.built,
            self.watch.running,
            self.watch.pace,
            self.machine.all_cores,
        )
        self.jobs = {job.path: job for job in jobs}
        self.pause = max(EVERY_S, (time.process_time() - begin) / SHARE)
        begin = time.monotonic()
        if begin >= self.next:
            self.course = simulate(jobs, self.machine.all_cores, self.machine.gpu_mb)
            self.at = time.monotonic()
            self.next = self.at + (self.at - begin) / SHARE
        if self.machine.cores is None and begin >= self.asked + QUEUE_S:
            self.queued, self.asked = queue(), time.monotonic()
        return runs

    def draw(self, runs: bool, width: int) -> Group:
        """All of it, as rich draws it. width: of the terminal, in characters."""
        return Group(*self.head(runs), *self.running(width), "", self.facts(runs))

    def head(self, runs: bool) -> Iterator[str | Text]:
        """How much is built, and when it ends or how it ended."""
        watch = self.watch
        built = f"{len(watch.built)} of {count(len(watch.jobs), 'artifact')} built"
        if runs:
            left = max(1.0, self.course.seconds - (time.monotonic() - self.at))
            since = duration(time.time() - watch.build.began)
            at = time.strftime("%a %H:%M", time.localtime(time.time() + left))
            guessed = not all(job.known for job in self.jobs.values() if job.done is None)
            by = "partly by rates measured elsewhere" if guessed else "going by earlier runs"
            by += ", without waits in the queue" if self.machine.cores is None else ""
            yield f"{built} in {since}; about {duration(left)} more, until {at} ({by})"
            return
        said = {"done": "The build has ended well", "failed": "The build has failed"}
        yield Text(f"{said.get(build.outcome(), 'The build was killed')}: {built}.", style="bold")
        if not build.outcome():
            host = watch.build.host
            if host != os.uname().nodename:
                yield f"(Or it runs on {host}, and file locks of {host} are not seen here.)"
            yield "The same command again goes on from there."

    def running(self, width: int) -> Iterator[Table | str]:
        """A line for each step that runs."""
        if not self.watch.running:
            return
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        table.add_column("\nrunning", no_wrap=True)
        table.add_column("\nfor", justify="right", no_wrap=True)
        table.add_column("\nof about", justify="right", no_wrap=True)
        table.add_column("\ndone", width=BAR)
        table.add_column(justify="right", no_wrap=True)
        left = seconds_left(
            [self.jobs[path] for path in self.watch.running], self.machine.all_cores
        )
        for path, begun in list(self.watch.running.items())[:SHOWN]:
            bar, part = "", ""
            if begun.part is not None:
                bar, part = ProgressBar(1, begun.part, width=BAR), f"{begun.part:.0%}"
            host = self.watch.hosts[path]
            name = path.removeprefix("results/")
            name += "" if host == self.watch.build.host else f" on {host}"
            if len(name) > (room := max(20, width - REST)):
                name = f"…{name[1 - room :]}"
            whole = duration(begun.seconds + left[path])
            table.add_row(name, duration(begun.seconds), whole, bar, part)
        yield table
        if (more := len(self.watch.running) - SHOWN) > 0:
            yield f"and {more} more"

    def facts(self, runs: bool) -> Table:
        """What waits, the disk, the queue, and what has failed."""
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        waiting = [self.jobs[path] for path in self.watch.waiting]
        if waiting:
            table.add_row("waiting", kinds(job.rule for job in waiting))
            longest = nlargest(LONGEST, waiting, key=lambda job: job.seconds)
            named = (
                f"{job.path.removeprefix('results/')} {duration(job.seconds)}" for job in longest
            )
            table.add_row("", f"the longest: {', '.join(named)}")
        free = shutil.disk_usage(".").free
        disk = f"{human(free)} free"
        if runs:
            fits = "it fits" if self.course.bytes <= free else "IT DOES NOT FIT"
            at = f", while {self.course.at} is made" if self.course.at else ""
            disk += f"; {human(self.course.bytes)} more than now at the fullest{at}: {fits}"
        table.add_row("disk", disk)
        if self.queued:
            table.add_row("queue", self.queued)
        how = Text("failed" if runs or build.outcome() else "cut off", style="red")
        for path in self.watch.failed[:SHOWN]:
            table.add_row(how, f"{path}: see {log_file(path)}")
        if (more := len(self.watch.failed) - SHOWN) > 0:
            table.add_row("", f"and {more} more")
        return table


def kinds(rules: Iterable[str]) -> str:
    """How many there are of each rule: "9 split, 2 report"."""
    return ", ".join(f"{number} {rule}" for rule, number in Counter(rules).most_common())


def queue() -> str:
    """The jobs of this directory in Slurm's queue, by state, with the reason why they wait."""
    if not (squeue := shutil.which("squeue")):
        return ""
    command = [squeue, "--noheader", f"--user={getpass.getuser()}", "--format=%T|%j|%r|%Z"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        asked = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return f"squeue has not answered within {PATIENCE_S} s"
    if asked.returncode:
        return f"squeue: {' '.join(asked.stderr.split())}"
    here, states = os.path.realpath("."), {}
    for line in asked.stdout.splitlines():
        state, name, reason, directory = line.split("|", 3)
        if os.path.realpath(directory) == here and name.startswith("quantmill-"):
            why = f" ({reason})" if state == "PENDING" else ""
            states.setdefault(state.lower(), Counter())[name.removeprefix("quantmill-") + why] += 1
    said = (
        f"{of.total()} {state}: {kinds(of.elements())}"
        for state, of in sorted(states.items(), reverse=True)
    )
    return "; ".join(said) or "no jobs of this directory"


@contextmanager
def own_terminal() -> Iterator[None]:
    """Take the terminal, so that Ctrl-C ends this program and is no failure to Snakemake."""
    if not sys.stdin.isatty() or os.getpgrp() == os.getpid():  # the latter: started by hand
        yield
        return
    terminal, before = sys.stdin.fileno(), os.tcgetpgrp(sys.stdin.fileno())
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else giving it back would stop this program
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(terminal, before)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = build.read()
    if found is None:
        print("No build has begun in this directory, or what runs here builds nothing.")
        return
    console = Console(highlight=False, markup=False, emoji=False)
    view = View(Watch(found))
    runs = view.look()
    if not console.is_terminal:
        console.width = WIDTH
        console.print(view.draw(runs, WIDTH))
        return
    live = Live(view.draw(runs, console.width), console=console, auto_refresh=False)
    with own_terminal(), suppress(KeyboardInterrupt), live:
        while runs:
            time.sleep(view.pause)
            runs = view.look()
            live.update(view.draw(runs, console.width), refresh=True)


if __name__ == "__main__":
    program(main)

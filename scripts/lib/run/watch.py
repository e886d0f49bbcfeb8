"""Watch a build from outside: what is built, what runs and how far it is, what has failed.

Looks at files only, so it works on any machine that sees them, and the build does not notice. Only
artifacts whose inputs are there are looked at: no other can have been built since.
"""

import os
import re
import time
from collections import Counter
from functools import cache
from pathlib import Path

from lib.forecast.remaining import Begun, Pace
from lib.planning.handoff import is_set_back
from lib.record.layout import building_directory, log_file, times_file
from lib.run.build import Build
from lib.run.hold import held
from lib.stages.registry import STAGES
from lib.stages.stage import Counted

HEAD, TAIL = 1 << 16, 1 << 14  # bytes of a log that are read
# The size of an output tells how far its step is, from so many bytes and from this part of it on.
LARGE, BEGUN = 10**6, 0.01
SETTLE_S = 0.3  # between the end of a step's log and the mark that its artifact is there
_building, _log = cache(building_directory), cache(log_file)


class Watch:
    """A build, and how far it was when it was looked at last.

    built: paths of the artifacts that are there. running, failed: the others that a step is or was
    at. hosts: {path: the machine on which it runs}.
    """

    def __init__(self, build: Build):
        self.build, self.pace = build, Pace()
        self.jobs = {job.path: job for job in build.jobs}
        self.built: set[str] = set()
        self.running: dict[str, Begun] = {}
        self.failed: list[str] = []
        self.hosts: dict[str, str] = {}
        self._users: dict[str, list[str]] = {path: [] for path in self.jobs}
        self._missing = Counter()
        for job in build.jobs:
            for up in job.inputs:
                self._users[up].append(job.path)
                self._missing[job.path] += 1
        self._ready = dict.fromkeys(path for path in self.jobs if not self._missing[path])

    @property
    def waiting(self) -> list[str]:
        """The paths of what has still to begin."""
        busy = self.built | self.running.keys() | set(self.failed)
        return [path for path in self.jobs if path not in busy]

    def look(self) -> None:
        """Look at the files."""
        self._look()
        if self.failed:  # or it has just been built
            time.sleep(SETTLE_S)
            self._look()

    def _look(self) -> None:
        self.running, self.failed, todo = {}, [], list(self._ready)
        for path in todo:  # to which what has become ready is added
            if is_set_back(self.build.wanted[path]):
                del self._ready[path]
                self._end(path)
                for user in self._users[path]:
                    self._missing[user] -= 1
                    if not self._missing[user]:
                        self._ready[user] = None
                        todo.append(user)
            elif begun := self._begun(path):
                self.running[path] = begun
            elif self._was_tried(path):
                self.failed.append(path)

    def _end(self, path: str) -> None:
        self.built.add(path)
        try:
            cpu, _ = times_file(path).read_text(encoding="utf-8").split()
            self.pace.learn(self.jobs[path], float(cpu))
        except (OSError, ValueError):
            return

    def _was_tried(self, path: str) -> bool:
        try:
            return os.stat(_log(path)).st_mtime > self.build.began
        except OSError:
            return False

    def _begun(self, path: str) -> Begun | None:
        """The step that is at work on the artifact; None if there is none."""
        building = _building(path)
        try:
            names = os.listdir(building)
        except OSError:
            return None
        # Written once the step holds the artifact. Before, asking for the hold could disturb it.
        marks = [building / name / ".inputs.json" for name in names]
        marks = [mark for mark in marks if mark.exists()]
        if not marks or not held(building):
            return None
        try:
            seconds = max(0.0, time.time() - marks[0].stat().st_mtime)
            there = sum(_size(file) for file in building.rglob("*") if file.name != marks[0].name)
            self.hosts[path] = marks[0].parent.name.rpartition("-")[0]
            part = self._part(path, there)
            # A download goes into the hub's cache, and is as large as what comes of it.
            there = max(there, round((part or 0.0) * self.jobs[path].bytes))
            return Begun(seconds, part, there)
        except OSError:  # it has just ended
            return None

    def _part(self, path: str, there: int) -> float | None:
        """The part of the step that is done, by its log or the size of its output."""
        job = self.jobs[path]
        if counted := STAGES[job.rule].counted:
            logs = [Path(_log(path)), *_building(path).rglob("*.log")]
            return part_done(counted, [ends(log) for log in logs if log.exists()])
        part = there / job.bytes if job.bytes >= LARGE else 0.0
        return min(1.0, part) if part >= BEGUN else None


def part_done(counted: Counted, logs: list[str]) -> float | None:
    """The part of a step that is done, by its logs; None if they do not tell yet."""
    done = whole = 0.0
    for log in logs:
        numbers = re.findall(counted.done, log)
        wholes = re.findall(counted.of, log) if counted.of else ["100"] * len(numbers)
        if wholes:
            whole += float(wholes[-1])
            done += float(numbers[-1]) if numbers else 0.0
    return min(1.0, done / whole) if whole else None


def ends(log: Path) -> str:
    """The beginning and the end of a log."""
    with log.open("rb") as file:
        text = file.read(HEAD)
        if (size := os.fstat(file.fileno()).st_size) > HEAD:
            file.seek(max(HEAD, size - TAIL))
            text += b"\n" + file.read()
    return text.decode(errors="replace")


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0

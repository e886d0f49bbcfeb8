"""What is left of a build that is under way: its jobs as they stand, and how long they still take.

The plan says how long each job takes. Jobs that have ended tell how much longer such jobs take on
this machine than planned, and a job's own progress tells the rest of it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lib.forecast.schedule import Job, speeds_of

# The part from which a job's own pace is trusted: before it, the start of the tool counts too much.
TRUSTED = 0.1
OVERDUE = 0.95  # done, of a job that takes longer than expected and does not say how far it is


class Begun(NamedTuple):
    """A job that runs: for how many seconds, the part that is done (None: unknown), bytes there."""

    seconds: float
    part: float | None
    there: int


@dataclass
class Pace:
    """How the core seconds of the jobs that have ended compare with the plan."""

    measured: Counter[str] = field(default_factory=Counter)
    planned: Counter[str] = field(default_factory=Counter)

    def learn(self, job: Job, cpu: float) -> None:
        """Count a job that has ended. cpu: core seconds that it took."""
        for kind in {job.kind, job.rule}:
            self.measured[kind] += cpu
            self.planned[kind] += job.seconds * job.width

    def of(self, job: Job) -> Job:
        """The job with the seconds that it takes at this pace."""
        kind = job.kind if self.planned[job.kind] else job.rule
        if not self.planned[kind]:
            return job
        ratio = max(0.01, self.measured[kind] / self.planned[kind])
        return replace(job, seconds=job.seconds * ratio, known=True)


def as_it_stands(
    jobs: Iterable[Job], built: Collection[str], begun: Mapping[str, Begun], pace: Pace, cores: int
) -> list[Job]:
    """The jobs, for `simulate`. built: paths of the artifacts that are there. cores: of the run."""
    jobs = [pace.of(job) for job in jobs]
    running = [job for job in jobs if job.path in begun]
    # Jobs share the cores, so a second of theirs does less than a second of a job that runs alone.
    speeds = speeds_of(running, cores)

    def stands(job: Job) -> Job:
        if job.path in begun:
            return _begun(job, begun[job.path], job.seconds * speeds[job.path])
        return replace(job, done=1) if job.path in built else job

    return [stands(job) for job in jobs]


def _begun(job: Job, begun: Begun, share: float) -> Job:
    """The job with the part that is done, and the seconds that the whole of it takes alone."""
    spent, part = begun.seconds * share, begun.part
    if part is None:
        seconds = max(job.seconds, spent / OVERDUE)
        part = spent / seconds if seconds else OVERDUE
    else:
        seconds = spent / part if part >= TRUSTED else job.seconds
    return replace(job, seconds=seconds, done=min(part, 0.999), there=begun.there)


def seconds_left(running: list[Job], cores: int) -> dict[str, float]:
    """{path: seconds} that each of these jobs still takes, if all go on side by side."""
    speeds = speeds_of(running, cores)
    return {job.path: (1 - (job.done or 0)) / speeds[job.path] for job in running}

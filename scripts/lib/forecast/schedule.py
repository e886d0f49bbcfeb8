"""Simulate a build on a machine, to know how long it takes and how full the disk becomes.

Jobs start in the order of Snakemake's greedy scheduler (9.27.1), which profiles/default asks for.
Of the jobs that can start, it takes first those of the highest priority; of these, those that read
the largest temporary files, because these can be deleted afterwards; then those with the largest
input. Jobs that run at the same time and can use more cores than there are share them.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial


@dataclass
class Job:
    """The build of one artifact. Sizes are in bytes.

    bytes: the size of the artifact. replaces: the size of its old version, which is deleted at the
    end of the job. scratch: temporary files while the job runs. reads: the size of all inputs.
    inputs: paths of the inputs that are built in the same run. temporary: the artifact is deleted
    when its last consumer is done. threads, gpu_mb: what the job counts for, by which Snakemake
    starts jobs; gpu_mb in MiB. width: cores that its tools can use. seconds: of the job, if it has
    these. rule: that makes it. kind: jobs of one kind take times in proportion. known: whether an
    earlier run tells the seconds. done: the part of the job that is done, 1 where the artifact is
    there; None if the job has not begun. there: bytes of it that are on the disk already. waiting:
    inputs that are not built yet; `simulate` sets it.
    """

    path: str
    bytes: int
    replaces: int = 0
    scratch: int = 0
    reads: int = 0
    inputs: Sequence[str] = ()
    temporary: bool = False
    priority: int = 0
    threads: int = 1
    gpu_mb: int = 0
    width: float = 1.0
    seconds: float = 1.0
    rule: str = ""
    kind: str = ""
    known: bool = False
    done: float | None = None
    there: int = 0
    waiting: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Course:
    """The course of a simulated build.

    bytes: the most that the build adds to what is on the disk now. at: path of the artifact whose
    job started at that moment. after: bytes that are added at the end. seconds: of the whole build.
    critical: the critical path, (path of an artifact, seconds of its job): each job starts at the
    end of the one before, for which it had to wait. The last one ends the build.
    """

    bytes: int
    at: str
    after: int
    seconds: float
    critical: tuple[tuple[str, float], ...] = ()


def simulate(jobs: Iterable[Job], cores: int, gpu_mb: int | None = None) -> Course:
    """Simulate the build of these jobs, from now on if some are done or have begun.

    cores: threads that may run at once. gpu_mb: MiB of GPU memory; None: no limit.
    """
    known = {job.path: job for job in jobs}
    consumers: dict[str, set[str]] = {path: set() for path in known}
    undone = [job for job in known.values() if job.done != 1]
    for job in undone:
        inputs = [up for up in job.inputs if up in known]
        for up in inputs:
            consumers[up].add(job.path)
        job.waiting = {up for up in inputs if known[up].done != 1}
    needed = {path: set(users) for path, users in consumers.items()}
    reward = partial(_reward, known)
    # In ascending order, so that the next one is the last.
    ready = sorted((job for job in undone if job.done is None and not job.waiting), key=reward)
    running = [job for job in undone if job.done is not None]
    left = {job.path: 1 - job.done for job in running}  # of each, the part still to be done
    # When a job began, and at the end of which other job.
    began: dict[str, tuple[float, str]] = {job.path: (0.0, "") for job in running}
    cores, gpu_mb = max(1, cores), float("inf") if gpu_mb is None else gpu_mb
    free = cores - sum(min(job.threads, cores) for job in running)
    free_mb = gpu_mb - sum(min(job.gpu_mb, gpu_mb) for job in running)
    used = sum(job.bytes + job.scratch - job.there for job in running)
    most, at, now, path = max(0, used), next(iter(left), ""), 0.0, ""
    while ready or left:
        passed_over = []
        while ready and free > 0:
            job = ready.pop()
            threads, memory = min(job.threads, cores), min(job.gpu_mb, gpu_mb)
            if threads > free or memory > free_mb:
                passed_over.append(job)
                continue
            free, free_mb = free - threads, free_mb - memory
            used += job.bytes + job.scratch
            if used > most:
                most, at = used, job.path
            left[job.path], began[job.path] = 1.0, (now, path)
        ready += reversed(passed_over)
        speeds = speeds_of([known[path] for path in left], cores)
        step, path = min((left[path] / speed, path) for path, speed in speeds.items())
        now += step
        for other, speed in speeds.items():
            left[other] -= step * speed
        del left[path]
        job = known[path]
        free += min(job.threads, cores)
        free_mb += min(job.gpu_mb, gpu_mb)
        used -= job.scratch + job.replaces
        for up in job.inputs:
            if up in known:
                needed[up].discard(path)
                if known[up].temporary and not needed[up]:
                    used -= known[up].bytes
        for user in consumers[path]:
            known[user].waiting.discard(path)
            if not known[user].waiting:
                insort(ready, known[user], key=reward)
    return Course(most, at, used, now, _critical(path, now, began))


def speeds_of(running: list[Job], cores: int) -> dict[str, float]:
    """{path: the part of the job that is done in a second}.

    None gets more cores than it can use, and what one leaves goes to the others in equal parts.
    """
    speeds, free = {}, float(cores)
    for number, job in enumerate(sorted(running, key=lambda job: job.width)):
        got = min(job.width, free / (len(running) - number))
        free -= got
        speeds[job.path] = got / job.width / max(job.seconds, 1e-3)
    return speeds


def _critical(
    last: str, end: float, began: dict[str, tuple[float, str]]
) -> tuple[tuple[str, float], ...]:
    """Go back from the job that ended last; each began at the end of the one before."""
    found = []
    while last:
        start, before = began[last]
        found.append((last, end - start))
        last, end = before, start
    return tuple(reversed(found))


def _reward(known: dict[str, Job], job: Job) -> tuple[int, int, int]:
    temporary = sum(known[up].bytes for up in job.inputs if up in known and known[up].temporary)
    return job.priority, temporary, job.reads

"""Simulate a build on a number of cores, to know how full the disk becomes.

Jobs start in the order of Snakemake's greedy scheduler (9.27.1), which profiles/default asks for.
Of the jobs that can start, it takes first those that read the largest temporary files, because
these can be deleted afterwards; then those with the largest input.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Job:
    """The build of one artifact. Sizes are in bytes.

    bytes: the size of the artifact. replaces: the size of its old version, which is deleted at the
    end of the job. scratch: temporary files while the job runs. reads: the size of all inputs.
    inputs: paths of the inputs that are built in the same run. temporary: the artifact is deleted
    when its last consumer is done. waiting: inputs that are not built yet; `peak` sets it.
    """

    path: str
    bytes: int
    replaces: int = 0
    scratch: int = 0
    reads: int = 0
    inputs: tuple[str, ...] = ()
    temporary: bool = False
    threads: int = 1
    seconds: float = 1.0
    waiting: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Peak:
    """The peak use of the disk in a build.

    bytes: the most that the build adds to what is on the disk now. at: path of the artifact whose
    job started at that moment. after: bytes that are added at the end. seconds: of the whole build.
    """

    bytes: int
    at: str
    after: int
    seconds: float


def peak(jobs: Iterable[Job], cores: int) -> Peak:
    """Simulate the build of these jobs. cores: threads that may run at once."""
    known = {job.path: job for job in jobs}
    consumers: dict[str, set[str]] = {path: set() for path in known}
    for job in known.values():
        job.waiting = {up for up in job.inputs if up in known}
        for up in job.waiting:
            consumers[up].add(job.path)
    needed = {path: set(users) for path, users in consumers.items()}
    ready = [job for job in known.values() if not job.waiting]
    running: list[tuple[float, str]] = []
    free, now, used = max(1, cores), 0.0, 0
    most, at = 0, ""
    while ready or running:
        ready.sort(key=lambda job: _reward(job, known))
        while ready:
            job = ready[-1]
            threads = min(job.threads, max(1, cores))
            if threads > free:
                break
            ready.pop()
            free -= threads
            used += job.bytes + job.scratch
            if used > most:
                most, at = used, job.path
            heapq.heappush(running, (now + job.seconds, job.path))
        now, path = heapq.heappop(running)
        job = known[path]
        free += min(job.threads, max(1, cores))
        used -= job.scratch + job.replaces
        for up in job.inputs:
            if up in known:
                needed[up].discard(path)
                if known[up].temporary and not needed[up]:
                    used -= known[up].bytes
        for user in consumers[path]:
            known[user].waiting.discard(path)
            if not known[user].waiting:
                ready.append(known[user])
    return Peak(most, at, used, now)


def _reward(job: Job, known: dict[str, Job]) -> tuple[int, int]:
    temporary = sum(known[up].bytes for up in job.inputs if up in known and known[up].temporary)
    return temporary, job.reads

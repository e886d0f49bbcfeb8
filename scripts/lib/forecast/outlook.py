"""Forecast a build: the files that it makes, their sizes and times, and the disk's peak use."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lib.forecast import resources
from lib.forecast.machine import Machine
from lib.forecast.schedule import Course, Job, simulate
from lib.forecast.sizes import Sizes
from lib.forecast.times import Times, Work, kind_of
from lib.planning.cooling import Cooling
from lib.planning.graph import Graph
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.stages import cold
from lib.stages.registry import STAGES
from lib.stages.stage import Size
from lib.units import human

# Sizes are predicted within some per cent, and a disk that is full to the last byte stops more than
# this build.
RESERVE = 0.03


@dataclass(frozen=True)
class Outlook:
    """The forecast of a build.

    artifacts: in the order of the build. taken: {path: bytes} of those that a store has.
    predicted: the object that computed the sizes. sizes, work: by path. jobs: what was simulated.
    course: how long the build takes and what it adds to the disk. free: bytes that are free on the
    disk now.
    """

    artifacts: list[Artifact]
    taken: dict[str, int]
    predicted: Sizes
    sizes: dict[str, Size]
    work: dict[str, Work]
    jobs: list[Job]
    course: Course
    free: int

    @property
    def fits(self) -> bool:
        """Whether the peak, with a reserve of 3%, fits into the free space."""
        return self.course.bytes * (1 + RESERVE) <= self.free

    def impossible(self) -> list[str]:
        """A sentence for each step that will fail whatever it is made from."""
        built = (artifact for artifact in self.artifacts if artifact.path not in self.taken)
        found = (STAGES[a.rule].impossible(a, self.predicted) for a in built)
        return [sentence for sentence in found if sentence]

    def refusal(self, reclaim: list[str]) -> str:
        """The message for a build that does not fit: the figures, and a line for each remedy.

        reclaim: the config's `reclaim`; what is in it already is no remedy.
        """
        lines = [
            f"This build does not fit the disk: it needs {human(self.course.bytes)} at its "
            f"fullest, and {human(self.free)} are free.",
            f"  at its fullest: while {self.course.at} is made",
        ]
        remedies = {
            "snakemake plan": "shows the files and their sizes",
            "--config model=NAME": "builds some models only",
            "--config ignore_disk=true": "builds all the same",
        }
        kinds = ["safetensors", "bf16", *([cold.KIND] if cold.has_store() else [])]
        if could := [kind for kind in kinds if kind not in reclaim]:
            wanted = f"reclaim: [{', '.join([*reclaim, *could])}]"
            remedies = {wanted: "in the config deletes what is used, or elsewhere"} | remedies
        return "\n".join(lines + [f"  {what:<30} {why}" for what, why in remedies.items()])


def forecast(
    graph: Graph,
    building: Iterable[Artifact],
    machine: Machine,
    taken: Mapping[str, int] | None = None,
    cooling: Cooling | None = None,
) -> Outlook:
    """Forecast the build of these artifacts, which are in the order of the build.

    taken: {path: bytes} of those that are taken from a store instead. cooling: what it deletes.
    """
    artifacts, taken = list(building), dict(taken or {})
    paths = {artifact.path for artifact in artifacts}
    sizes = Sizes(graph, graph.lock)
    times = Times(graph, sizes, machine)
    found = {
        artifact.path: Size(taken[artifact.path], "made")
        if artifact.path in taken
        else _output(artifact, sizes)
        for artifact in artifacts
    }
    work = {
        artifact.path: _of_copy(taken[artifact.path])
        if artifact.path in taken
        else times.of(artifact)
        for artifact in artifacts
    }
    kinds = Counter(artifact.rule for artifact in artifacts if artifact.path not in taken)
    jobs = []
    for artifact in artifacts:
        stage = STAGES[artifact.rule]
        if artifact.path in taken:
            after = cooling.after(artifact) if cooling else ()
            job = _taking(artifact, taken[artifact.path])
            job.inputs = tuple(up.path for up in after if up.path in paths)
            jobs.append(job)
            continue
        # What it reads and what it needs besides: tools, and what has to be measured first.
        awaited = cooling.awaited(artifact) if cooling else artifact.needed
        reads, weights = sizes.read_by(artifact), sizes.read_by(artifact, stage.reads)
        jobs.append(
            Job(
                artifact.path,
                found[artifact.path].bytes,
                replaces=_on_disk(artifact),
                scratch=round(reads * stage.scratch),
                reads=reads,
                inputs=tuple(up.path for up in awaited if up.path in paths),
                temporary=artifact.temporary,
                priority=stage.priority,
                threads=machine.threads(stage, weights, kinds[artifact.rule]),
                gpu_mb=resources.gpu_mb(stage, weights) if machine.has_gpu(stage) else 0,
                width=work[artifact.path].width,
                seconds=work[artifact.path].seconds,
                rule=artifact.rule,
                kind=" ".join(kind_of(artifact)),
                known=work[artifact.path].known,
            )
        )
    for job, artifact in zip(jobs, artifacts, strict=True):
        job.temporary = job.temporary or bool(cooling and cooling.goes(artifact))
    course = simulate(jobs, machine.all_cores, machine.gpu_mb)
    return Outlook(artifacts, taken, sizes, found, work, jobs, course, shutil.disk_usage(".").free)


def _of_copy(size: int) -> Work:
    return Work(max(1.0, size / resources.COPY_MB_PER_S / 1e6), 0.5, known=True)


def _taking(artifact: Artifact, size: int) -> Job:
    """The job that takes an artifact. Where it is linked it needs no room; here it is copied."""
    work = _of_copy(size)
    return Job(
        artifact.path,
        size,
        replaces=_on_disk(artifact),
        temporary=artifact.temporary,
        width=work.width,
        seconds=work.seconds,
        rule=artifact.rule,
        kind="taken from the store",
        known=True,
    )


def _output(artifact: Artifact, sizes: Sizes) -> Size:
    """What an artifact takes on the disk: 0 for a link to a user's file."""
    if artifact.links and artifact.file:
        return Size(0, "tensors")
    return sizes.of(artifact)


def _on_disk(artifact: Artifact) -> int:
    """Bytes of the old version, which is deleted when the new one is there; 0 if there is none."""
    if artifact.links or not os.path.exists(artifact.path):
        return 0
    record = recipes.read(artifact.path)
    return record.bytes if record and not record.is_link else 0

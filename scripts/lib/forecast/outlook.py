"""Forecast a build: the files that it makes, their sizes and times, and the disk's peak use."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from lib.forecast.schedule import Job, Peak, peak
from lib.forecast.sizes import Sizes
from lib.forecast.times import Times
from lib.planning.graph import Graph
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.stages.registry import STAGES
from lib.stages.stage import Size
from lib.units import human

# Sizes are predicted within some per cent, and a disk that is full to the last byte stops more than
# this build.
RESERVE = 0.03


@dataclass(frozen=True)
class Outlook:
    """The forecast of a build.

    artifacts: in the order of the build. predicted: the object that computed the sizes. sizes,
    seconds: by path; a time is None if no earlier run tells it. peak: the most that the build adds
    to the disk. free: bytes that are free on the disk now.
    """

    artifacts: list[Artifact]
    predicted: Sizes
    sizes: dict[str, Size]
    seconds: dict[str, float | None]
    peak: Peak
    free: int

    @property
    def fits(self) -> bool:
        """Whether the peak, with a reserve of 3%, fits into the free space."""
        return self.peak.bytes * (1 + RESERVE) <= self.free

    def refusal(self, reclaim: list[str]) -> str:
        """The message for a build that does not fit: the figures, and a line for each remedy.

        reclaim: the config's `reclaim`; what is in it already is no remedy.
        """
        lines = [
            f"This build does not fit the disk: it needs {human(self.peak.bytes)} at its fullest, "
            f"and {human(self.free)} are free.",
            f"  at its fullest: while {self.peak.at} is made",
        ]
        remedies = {
            "snakemake plan": "shows the files and their sizes",
            "--config model=NAME": "builds some models only",
            "--config ignore_disk=true": "builds all the same",
        }
        if could := [kind for kind in ("safetensors", "bf16") if kind not in reclaim]:
            wanted = f"reclaim: [{', '.join([*reclaim, *could])}]"
            remedies = {wanted: "in the config deletes intermediates once they are used"} | remedies
        return "\n".join(lines + [f"  {what:<30} {why}" for what, why in remedies.items()])


def forecast(graph: Graph, building: Iterable[Artifact], cores: int) -> Outlook:
    """Forecast the build of these artifacts, which are in the order of the build.

    cores: threads that may run at once.
    """
    artifacts = list(building)
    paths = {artifact.path for artifact in artifacts}
    sizes = Sizes(graph, graph.lock)
    times = Times(graph, sizes)
    found = {artifact.path: _output(artifact, sizes) for artifact in artifacts}
    seconds = {artifact.path: times.seconds(artifact) for artifact in artifacts}
    jobs = []
    for artifact in artifacts:
        stage = STAGES[artifact.rule]
        size, reads = found[artifact.path].bytes, sizes.read_by(artifact)
        guess = max(1.0, (size + reads) / 100e6)
        jobs.append(
            Job(
                artifact.path,
                size,
                replaces=_on_disk(artifact),
                scratch=round(reads * stage.scratch),
                reads=reads,
                inputs=tuple(up.path for up in artifact.inputs.values() if up.path in paths),
                temporary=artifact.temporary,
                threads=stage.threads(sizes.read_by(artifact, stage.reads)),
                seconds=seconds[artifact.path] or guess,
            )
        )
    free = shutil.disk_usage(".").free
    return Outlook(artifacts, sizes, found, seconds, peak(jobs, cores), free)


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

"""What a build will take: the files that it makes, their sizes and times, the most of the disk that it fills."""

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

# Sizes are predicted within some per cent, and a disk that is full to the last byte stops more than this build.
RESERVE = 0.03


@dataclass(frozen=True)
class Outlook:
    """sizes and seconds by path, in the order of the build; free: bytes that the disk has now.

    predicted: where the sizes are from.
    """

    artifacts: list[Artifact]
    predicted: Sizes
    sizes: dict[str, Size]
    seconds: dict[str, float | None]
    peak: Peak
    free: int

    @property
    def fits(self) -> bool:
        return self.peak.bytes * (1 + RESERVE) <= self.free

    def refusal(self, reclaim: list[str]) -> str:
        """The figures, and a line for each thing that can be done."""
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
    """The outlook of building these artifacts, which are in the order of the build."""
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
    """What it takes on the disk: a link to a file of the user's own takes nothing."""
    if artifact.links and artifact.file:
        return Size(0, "tensors")
    return sizes.of(artifact)


def _on_disk(artifact: Artifact) -> int:
    """Bytes of the old version, which goes when the new one is there."""
    if artifact.links or not os.path.exists(artifact.path):
        return 0
    record = recipes.read(artifact.path)
    return record.bytes if record and not record.is_link else 0

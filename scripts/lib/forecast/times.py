"""Predict how long a step takes, from Snakemake's measurements of earlier runs (benchmarks/)."""

from dataclasses import dataclass, field
from pathlib import Path

from lib.forecast.sizes import Sizes
from lib.planning.graph import Graph
from lib.record.artifact import Artifact


@dataclass
class Times:
    """The time of a step, from earlier runs and in proportion to the bytes that they read.

    Runs of the same rule and quant type count; if there are none, all runs of the rule.
    """

    graph: Graph
    sizes: Sizes
    _found: dict[tuple[str, str], list[tuple[float, int]]] | None = field(default=None)

    def seconds(self, artifact: Artifact) -> float | None:
        """Seconds of the artifact's step; None if there was no earlier run of its rule."""
        if self._found is None:
            self._found = {}
            self._read()
        runs = self._found.get(_kind(artifact)) or self._found.get((artifact.rule, ""))
        if not runs:
            return None
        # Starting a tool takes time whatever it reads, so a small run says nothing on the time of a
        # byte.
        seconds, read = map(sum, zip(*runs, strict=True))
        reads = self.sizes.read_by(artifact)
        return max(
            seconds / len(runs) if reads * len(runs) >= read else 0.5,
            seconds * reads / read if read else 0.0,
        )

    def _read(self) -> None:
        for artifact in self.graph:
            path = f"benchmarks/{artifact.path.removeprefix('results/')}.tsv"
            try:
                with Path(path).open(encoding="utf-8") as file:
                    header, row = (line.rstrip("\n").split("\t") for line in file.readlines()[:2])
                seconds = float(row[header.index("s")])
            except (OSError, ValueError):
                continue
            read = self.sizes.read_by(artifact)
            for kind in {_kind(artifact), (artifact.rule, "")}:
                self._found.setdefault(kind, []).append((seconds, read))


def _kind(artifact: Artifact) -> tuple[str, str]:
    return artifact.rule, str(artifact.options.get("type", ""))

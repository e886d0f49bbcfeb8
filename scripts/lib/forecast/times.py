"""Predict how long a step takes, from earlier runs (benchmarks/), else from measured rates."""

from dataclasses import dataclass, field
from typing import NamedTuple

from lib.forecast.machine import NODE_CORES, Machine
from lib.forecast.resources import TOKENS_PER_S, tokens_of
from lib.forecast.sizes import Sizes
from lib.planning.graph import Graph
from lib.record.artifact import Artifact
from lib.record.layout import times_file
from lib.stages.registry import STAGES

# Prefill tokens a second of a 1B model in 16 bits on one core: half of what AVX-512 does. Limits
# (TOKENS_PER_S) are for older processors.
TOKENS_PER_CORE = 50.0


class Work(NamedTuple):
    """The work of a step.

    seconds: of the step alone on the machine. width: cores that it then uses. known: whether an
    earlier run of such a step tells it.
    """

    seconds: float
    width: float
    known: bool


@dataclass
class Times:
    """The work of steps, from earlier runs and in proportion to the bytes that they read.

    Runs of the same rule and quant type count; if there are none, all runs of the rule.
    """

    graph: Graph
    sizes: Sizes
    machine: Machine
    _found: dict[tuple[str, str], list[tuple[float, float, int]]] | None = field(default=None)

    def of(self, artifact: Artifact) -> Work:
        """The work of the artifact's step."""
        if self._found is None:
            self._found = {}
            self._read()
        runs = self._found.get(kind_of(artifact)) or self._found.get((artifact.rule, ""))
        reads = self.sizes.read_by(artifact)
        if not runs:
            return self._work(artifact, *self._guess(artifact, reads), known=False)
        # Starting a tool takes time whatever it reads, so a small run says nothing on the time of a
        # byte.
        seconds, cpu, read = map(sum, zip(*runs, strict=True))
        scale = reads / read if read else 0.0
        if reads * len(runs) >= read:
            scale = max(scale, 1 / len(runs))
        return self._work(artifact, max(0.5, seconds * scale), cpu * scale, known=True)

    def _work(self, artifact: Artifact, seconds: float, cpu: float, known: bool) -> Work:
        """seconds: of the step on the cores that it had. cpu: its core seconds."""
        cores = self.machine.cores or NODE_CORES
        if STAGES[artifact.rule].takes_all:
            # It had a share of the cores, and alone it has them all.
            return Work(max(0.5, cpu / cores), float(cores), known)
        return Work(seconds, min(cores, max(0.1, cpu / seconds)), known)

    def _guess(self, artifact: Artifact, reads: int) -> tuple[float, float]:
        """(seconds, core seconds) by the rates that the stage declares."""
        stage, cores = STAGES[artifact.rule], self.machine.cores or NODE_CORES
        cost = stage.cost_of(artifact)
        cpu = cost.start + cost.per_gb * reads / 1e9
        threads = min(cores, self.machine.threads(stage, reads, 1))
        if not stage.tokens:
            return cpu / threads if stage.fixed_threads is None else cpu, cpu
        tokens = (tokens_of(artifact) or stage.tokens) * self._billions(artifact)
        if self.machine.has_gpu(stage):
            seconds = cpu + tokens / TOKENS_PER_S["gpu"]
            return seconds, seconds
        # What takes much longer a token does so on one core; it is compared with 8 of them.
        cpu += tokens * max(1 / TOKENS_PER_CORE, stage.per_token / TOKENS_PER_S["cpu"])
        return cpu / threads, cpu

    def _billions(self, artifact: Artifact) -> float:
        """Billions of weights of the model that a step runs, by its unquantized size."""
        model = artifact
        while up := next(filter(None, map(model.inputs.get, ("gguf", "model", "form"))), None):
            model = up
        return self.sizes.content(model) / 2e9

    def _read(self) -> None:
        for artifact in self.graph:
            try:
                cpu, seconds = map(float, times_file(artifact.path).read_text("utf-8").split())
            except (OSError, ValueError):  # of an earlier version
                continue
            read = self.sizes.read_by(artifact)
            for kind in {kind_of(artifact), (artifact.rule, "")}:
                self._found.setdefault(kind, []).append((seconds, cpu, read))


def kind_of(artifact: Artifact) -> tuple[str, str]:
    """(rule, quant type): earlier runs of the same tell how long a step takes."""
    return artifact.rule, str(artifact.options.get("type", ""))

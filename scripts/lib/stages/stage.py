"""The base class of a stage, which is one kind of step, and the types that stages declare.

A stage declares what a step needs of a machine, how large its output will be, and how it is shown.
The step's rule asks for the needs (`resources:`), and a scheduler holds jobs to them. None of this
decides an artifact's bytes or is in a recipe, so an edit here makes nothing stale. A site that
knows better overrides a number in its profile (`set-resources: merge: mem_mb=90000`).
"""

import os
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lib.formats.fallbacks import Fallbacks
from lib.formats.mixture import Dims
from lib.formats.weights import Weights
from lib.record.artifact import Artifact
from lib.record.bound import Bound


class Memory(NamedTuple):
    """Main memory of a step in MiB: fixed + min(small x input, cap + large x input).

    A step that reads tensor by tensor needs memory for the largest one. That is a large part of a
    small model (the embedding is a quarter of a 1B model) and a small part of a large one (1.5% of
    a 70B model); hence two slopes.
    """

    fixed_mb: int
    """MiB of interpreter, libraries and buffers that do not grow with the model."""
    small: float = 0.0
    """Slope for small models: copies of the whole input."""
    cap_mb: int = 0
    """MiB at which the second slope starts."""
    large: float = 0.0
    """Slope for large models: copies of the largest tensors."""


class Time(NamedTuple):
    """Wall time of a step: fixed + input / mb_per_s, on 8 cores of a common server.

    For a step that runs a model over a text, the time of its tokens is added (`Stage.tokens`).
    """

    fixed_min: int
    """Minutes that any input takes: start of the job, imports, a cold file system."""
    mb_per_s: float
    """MB of input done in a second, including reads and writes on a shared file system."""


class Cost(NamedTuple):
    """Core seconds of a step, as measured (docs/speed.md): start + per_gb x GB of input."""

    start: float = 1.0
    """Core seconds that its tools take whatever they read."""
    per_gb: float = 1.0
    """Core seconds for 10^9 bytes."""


class Counted(NamedTuple):
    """Where the log of a running step tells how far it is: patterns with the number as a group.

    Of each the last match counts.
    """

    done: str
    """How much is done."""
    of: str = ""
    """Of how much; empty: `done` is in per cent."""


@dataclass(frozen=True)
class Size:
    """A size in bytes, and its source.

    source: `made` (the artifact's record), `dry run` (of the tool), `tensors` (names and shapes),
    `lock` (sizes of the files on the hub), `last time` (an older record) or `guess`.
    """

    bytes: int
    source: str


class Sizing(Protocol):
    """What a stage may ask for to predict the size of its output (lib/forecast/sizes.Sizes)."""

    graph: Any
    lock: Any

    def of(self, artifact: Artifact, built: bool = True) -> Size:
        """The size of an artifact: predicted if it is built anew, else from its record."""

    def now(self, artifact: Artifact) -> Size:
        """The size of an artifact on disk, or the predicted one if it is not there yet."""

    def weights(self, artifact: Artifact) -> Weights | None:
        """The tensors of a model directory; None if they are unknown."""

    def tensors(self, artifact: Artifact) -> dict[str, Dims]:
        """{tensor's name in GGUF: shape, the row's width first}; empty if they are unknown."""

    def download(self, artifact: Artifact) -> int:
        """Bytes of weights by the lock, for a model that is not on disk; 0 if unknown."""


class Stage:
    """One kind of step. Each stage is a subclass, with one object in the registry.

    A parameter `size` always means the bytes of weights that the step reads: all models of a merge
    together, the GGUF of a quantization, the download of a source.
    """

    rule: str
    """The rule that makes its artifacts."""
    column = ""
    """The column of `snakemake status` that counts its artifacts; targets (rules/targets.smk) name
    it too. Stages may share a column. Empty: none."""
    is_long = False
    """Whether it takes so long that a preflight comes before a build with it."""
    is_weights = False
    """Whether its artifacts are files that people load; the summary after a run counts these."""
    measures = False
    """Whether its artifact is an evaluation. If the measured form has other bytes at each build,
    `verify_rebuild` compares evaluations by their mean KLD."""
    reads: tuple[str, ...] = ()
    """Roles of the inputs that count as the weights it reads; empty: all inputs."""
    memory = Memory(1000)
    time = Time(10, 1000)
    output = 0.0
    """Bytes that the step writes, output and scratch together, divided by the bytes that it reads.
    An upper bound for a scheduler (`disk_mb`); `size` predicts the output alone, and better."""
    scratch = 0.0
    """Bytes of temporary files while it runs, divided by the bytes that it reads."""
    tokens = 0
    """Tokens that it runs a model over if the config gives no number; 0: it runs no model."""
    per_token = 1.0
    """How many times as long as llama.cpp its engine takes for a token on processors."""
    bytes_per_weight = 2.0
    """The fewest bytes per weight that its input may have. The number of weights, and with it the
    time of its tokens, is computed from this."""
    cost = Cost()
    """What it costs, if that is the same for all its artifacts (`cost_of`)."""
    counted: Counted | None = None
    """How its log tells how far it is; None: by the bytes that are written (`snakemake live`)."""
    gpu = ""
    """How much of a model it keeps on the GPUs: "" nothing, "layer" one layer, "whole" all."""
    on_gpu = False
    """Whether it always runs on a GPU. If not, a profile can ask for one (`set-resources: gpu`)."""
    typical = 0
    """Bytes of its output if no formula gives them and none was made before; 0: unknown."""

    fixed_threads: int | None = 1
    """Threads of one job; None: a share of the run's cores (`threads`)."""
    takes_all = False
    """Whether its tool gets all cores of the run, whatever share of them the job counts for. Only
    for tools whose threads wait for nothing: several of them side by side share the cores without
    loss, and the last one has all of them."""
    priority = 0
    """Jobs of a higher priority start first. For steps that others wait for and that write next to
    nothing: the disk is no fuller for it."""
    bound = Bound.MACHINE
    """Where the same recipe and the same inputs give the same bytes. ANYWHERE is a promise that is
    kept by a measurement (docs/bytes.md); an artifact may have another bound (Artifact.bound)."""
    makes_model = False
    """Whether its artifact is a model directory, whose size follows from its tensors."""

    def threads(self, size: int, cores: int, jobs: int) -> int:
        """Threads of one job: the fixed number, else a share of the run's cores.

        cores: of the run. jobs: how many jobs of its kind the run has. Small models are done side
        by side, because two small quants side by side are done sooner than one after the other
        with two threads. Of those that read 1 GB or more, 4 are done side by side, and of those
        that read 20 GB or more, 2.
        """
        most = jobs if size < 1e9 else min(jobs, 4 if size < 2e10 else 2)
        return self.fixed_threads or max(1, cores // max(1, most))

    def gpu_copies(self, size: int) -> int:
        """How many models of this size it keeps on each GPU at once."""
        return 1

    def cost_of(self, artifact: Artifact) -> Cost:
        """What a step costs, if no earlier run tells; a model's tokens are added (`tokens`)."""
        return self.cost

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """The predicted size of the output; None if it cannot be predicted."""
        if artifact.file:
            return Size(os.path.getsize(artifact.file), "tensors")
        return directory_size(artifact, sizes) if self.makes_model else None

    def links(self, artifact: Artifact) -> bool:
        """Whether an output of size 0 is a link to other files."""
        return artifact.links

    def impossible(self, artifact: Artifact, sizes: Sizing) -> str | None:
        """Why the step will fail whatever it is made from, in a sentence; None if it may not."""
        return None

    def fallbacks(self, artifact: Artifact, sizes: Sizing) -> Fallbacks | None:
        """The tensors that will get another type than asked for; None: none, or unknown."""
        return None

    # Of stages that make a model:

    def weights(self, artifact: Artifact, sizes: Sizing) -> Weights | None:
        """The tensors of the model directory that it makes, before it exists; None: unknown."""
        return None

    def tensors(self, artifact: Artifact, sizes: Sizing) -> dict[str, Dims] | None:
        """As `Sizing.tensors`, for a GGUF; None: the tensors follow from `weights`."""
        return None

    def download(self, artifact: Artifact, sizes: Sizing) -> int:
        """As `Sizing.download`."""
        return 0


class TakenStage(Stage):
    """A stage that takes what comes from outside as it is: a file of the user's, a model."""

    memory = Memory(1500)
    time = Time(10, 20)
    output = 1.0
    bound = Bound.ANYWHERE


def locked_size(model: Artifact, sizes: Sizing, bits: float = 16) -> Size | None:
    """The size of a model at so many bits per weight, by its files in the lock; else None."""
    size = sizes.download(model)
    return Size(round(size * bits / 16), "lock") if size else None


def directory_size(artifact: Artifact, sizes: Sizing) -> Size | None:
    """The size of a model directory from its tensors, else from the lock; None if unknown."""
    weights = sizes.weights(artifact)
    if weights is None:
        return locked_size(artifact, sizes)
    tensors = round(weights.parameters * weights.bytes_per_weight)
    return Size(tensors + weights.side_files, "tensors")

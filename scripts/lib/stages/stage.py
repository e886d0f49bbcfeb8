"""What is declared of a stage: a kind of step, and all that is true of it alone.

A stage says what a step needs of a machine (`resources:` of its rule asks for it, and a scheduler
holds jobs to it), how large its output will be, and how it is shown. None of it decides an
artifact's bytes, and no recipe contains it: an edit here makes nothing stale. A site that knows
better overrides one number in its profile (`set-resources: merge: mem_mb=90000`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lib.formats.fallbacks import Fallbacks
from lib.formats.mixture import Dims
from lib.formats.weights import Weights
from lib.record.artifact import Artifact


class Memory(NamedTuple):
    """Main memory of a step: fixed + min(small x input, cap + large x input).

    The largest tensor decides what a streaming step holds. In a small model it is most of the file
    (the embedding is a quarter of a 1B model), in a large one a small part (1.5% of a 70B model);
    hence two slopes.
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

    Where a step runs a model over a text, the time of its tokens comes to that (`Stage.tokens`).
    """

    fixed_min: int
    """Minutes of queue noise, imports and a cold file system."""
    mb_per_s: float
    """MB of input done in a second, reading and writing on a shared file system included."""


@dataclass(frozen=True)
class Size:
    """Bytes, and where they are known from: made, dry run, tensors, lock, last time, guess."""

    bytes: int
    source: str


class Sizing(Protocol):
    """What a stage may ask in order to tell the size of its output (lib/forecast/sizes.py)."""

    graph: Any
    lock: Any

    def of(self, artifact: Artifact, built: bool = True) -> Size:
        """The size of an artifact: predicted if it is built anew, else as its record says."""

    def now(self, artifact: Artifact) -> Size:
        """The size that an artifact has, or will have where it is not there yet."""

    def weights(self, artifact: Artifact) -> Weights | None:
        """The tensors of a model directory; None if unknown."""

    def tensors(self, artifact: Artifact) -> dict[str, Dims]:
        """{GGUF's name: shape, the row's width first} of a model that is known; else empty."""

    def download(self, artifact: Artifact) -> int:
        """Bytes of weights that the lock tells of, for a model that is not there; 0 if unknown."""


class Stage:
    """A kind of step. Each stage is a subclass, of which there is one object in the registry.

    `size` below is always the bytes of weights that a step reads: all models of a merge together,
    the GGUF of a quantization, the download of a fetch.
    """

    rule: str
    """The rule that makes its artifacts."""
    column = ""
    """Where `snakemake status` counts them, and what a target (rules/targets.smk) asks for; stages
    may share a column. Empty: nowhere."""
    is_long = False
    """It takes long enough to ask before the first job what would make the build fail later."""
    is_weights = False
    """The summary after a run counts its artifacts: files that people load."""
    measures = False
    """Its artifact is an evaluation. `verify_rebuild` compares it by its mean KLD where what was
    measured never comes out the same twice."""
    reads: tuple[str, ...] = ()
    """Roles of the inputs that are the weights it reads; empty: all inputs."""
    memory = Memory(1000)
    time = Time(10, 1000)
    output = 0.0
    """Bytes that the step writes, output and scratch together, as a share of what it reads: an
    upper bound, for a scheduler (`disk_mb`). Of outputs alone `plan` knows better."""
    scratch = 0.0
    """Bytes that it needs beside its output while it runs, as a share of what it reads."""
    tokens = 0
    """Tokens that it runs a model over, where the config does not say; 0: it runs none."""
    bytes_per_weight = 2.0
    """The smallest that its input may have, for the time of its tokens."""
    gpu = ""
    """What of a model it keeps on the GPUs: "" nothing, "layer", "whole"."""
    on_gpu = False
    """It always runs on a GPU; else only where a profile says so (`set-resources: gpu`)."""
    typical = 0
    """Bytes of its output, where no formula tells and none was made before; 0: unknown."""

    def threads(self, size: int) -> int:
        """Threads of a job."""
        return 1

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """How large the output will be; None where nothing tells."""
        return None

    def links(self, artifact: Artifact) -> bool:
        """It only links where its size is 0."""
        return artifact.links

    def fallbacks(self, artifact: Artifact, sizes: Sizing) -> Fallbacks | None:
        """Tensors that will have other types than was asked for; None: none, or unknown."""
        return None

    # Of stages that make a model:

    def weights(self, artifact: Artifact, sizes: Sizing) -> Weights | None:
        """The tensors of the model directory that it makes, before it is there; None: unknown."""
        return None

    def tensors(self, artifact: Artifact, sizes: Sizing) -> dict[str, Dims] | None:
        """As `Sizing.tensors`, of what is no model directory; None: of `weights`."""
        return None

    def download(self, artifact: Artifact, sizes: Sizing) -> int:
        """As `Sizing.download`."""
        return 0


def threads_by_size(size: int) -> int:
    """Two small quants side by side beat one with two threads; a large one is worth eight."""
    return 1 if size < 1e9 else 4 if size < 2e10 else 8


def directory_size(artifact: Artifact, sizes: Sizing) -> Size | None:
    """The size of a model directory, from its tensors, else from the lock."""
    weights = sizes.weights(artifact)
    if weights is None:
        size = sizes.download(artifact)
        return Size(size, "lock") if size else None
    tensors = round(weights.parameters * weights.bytes_per_weight)
    return Size(tensors + weights.side_files, "tensors")

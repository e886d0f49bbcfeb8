"""The memory, time, disk and GPUs that a job asks for, by its stage and the size of its input.

Rules ask for these numbers (`resources: mem_mb=…, runtime=…`), and a scheduler holds jobs to them.
All functions are pure: the same stage, input and attempt give the same number on every machine.

`size` is the bytes of weights that the step reads (lib/stages/stage.Stage). 0 means unknown and is
taken as an 8B model in 16 bits (UNKNOWN_BYTES).

A second attempt gets twice the memory and time of the first, a third four times. A wrong guess is
seldom wrong by a few per cent only, and each attempt waits in the queue again.
"""

from lib.record.artifact import Artifact
from lib.stages.stage import Stage

MIB = 2**20
UNKNOWN_BYTES = 16 * 10**9
# MiB of the Snakemake process that runs the step in a cluster's job.
SNAKEMAKE_MB = 400
# Prefill tokens a second of a 1B model in 16 bits: a GPU of 80 GB at 40% of its peak, and 8 cores.
TOKENS_PER_S = {"gpu": 60_000.0, "cpu": 120.0}
MAX_GPUS = 8
COPY_MB_PER_S = 50  # from a store over a common network, copied and hashed


def mem_mb(stage: Stage, size: int = 0, attempt: int = 1) -> int:
    """Main memory in MiB for one job, with SNAKEMAKE_MB for Snakemake; at least 1000."""
    read, need = (size or UNKNOWN_BYTES) / MIB, stage.memory
    first = SNAKEMAKE_MB + need.fixed_mb
    first += min(need.small * read, need.cap_mb + need.large * read)
    return max(1000, round(first * 2 ** (attempt - 1)))


def runtime_min(
    stage: Stage, size: int = 0, attempt: int = 1, tokens: int = 0, gpu: bool = False
) -> int:
    """Wall time in minutes for one job.

    tokens: tokens that it runs a model over (chunks x context); 0: the stage's number. gpu: layers
    are offloaded to a GPU.
    """
    size = size or UNKNOWN_BYTES
    minutes = stage.time.fixed_min + size / (stage.time.mb_per_s * 1e6) / 60
    if stage.tokens:
        billions = size / stage.bytes_per_weight / 1e9
        on_gpu = gpu or stage.on_gpu
        rate = TOKENS_PER_S["gpu"] if on_gpu else TOKENS_PER_S["cpu"] / stage.per_token
        minutes += (tokens or stage.tokens) * billions / rate / 60
    return round(minutes * 2 ** (attempt - 1))


def disk_mb(stage: Stage, size: int = 0) -> int:
    """MiB of scratch and output that one job writes at most; at least 100."""
    return max(100, round(stage.output * (size or UNKNOWN_BYTES) / MIB))


def of_copy(resource: str, size: int) -> int:
    """A resource of a job that takes `size` bytes from a store: they are copied and hashed."""
    minutes = 10 + round(size / COPY_MB_PER_S / 1e6 / 60)
    return {"mem_mb": 1000, "runtime": minutes, "disk_mb": max(100, size // MIB)}.get(resource, 0)


def tokens_of(artifact: Artifact) -> int:
    """Tokens that a step runs a model over: chunks x context; 0 if the config does not say."""
    options = artifact.options
    return (options.get("chunks") or 0) * (options.get("context") or 0)


def gpu_mb(stage: Stage, size: int = 0) -> int:
    """MiB of GPU memory for one job that runs on a GPU, by which steps share one.

    A whole model: 15% above the weights for context and buffers, and 1500 MiB. A layer after the
    other: 6000 MiB (a conversion of 3.4 GB peaked at 5500) and a tenth of the weights.
    """
    weights = (size or UNKNOWN_BYTES) / MIB
    if stage.gpu == "whole":
        return round(stage.gpu_copies(size) * (1.15 * weights + 1500))
    return round(0.1 * weights + 6000)


def gpus(stage: Stage, size: int = 0, card_mb: int = 80_000) -> int:
    """GPUs of `card_mb` MiB for one job; 0 for a stage that never uses one.

    A step that works layer by layer gets one GPU: a card of 24 GB is enough for a 70B model. Call
    this only for steps that are offloaded; the stage does not know that.
    """
    if stage.gpu != "whole":
        return 1 if stage.gpu else 0
    return min(MAX_GPUS, max(1, -(-gpu_mb(stage, size) // card_mb)))

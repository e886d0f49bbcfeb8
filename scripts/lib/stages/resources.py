"""What a step needs of a machine: memory, time, disk and GPUs, from the size of what it reads.

Rules ask for these numbers (`resources: mem_mb=…, runtime=…`); a scheduler holds jobs to them. They
decide nothing about an artifact's bytes, so no recipe contains them. All functions are pure: the
same step, input and attempt give the same number on every machine. A site that knows better
overrides one number in its profile (`set-resources: merge: mem_mb=90000`).

`input_bytes` is the size of the weights that the step reads: all models of a merge together, the
safetensors of a conversion or an EXL2 job, the GGUF of an imatrix, quantization, split or
evaluation, the download of a fetch. 0 means unknown and is taken as an 8B model in 16 bits
(`UNKNOWN_BYTES`).

A second attempt gets twice the memory and twice the time of the first, a third four times: a guess
that was wrong was seldom wrong by a few per cent, and each attempt costs a queue.
"""

from typing import Literal, NamedTuple, get_args

Step = Literal[
    "merge",
    "convert",
    "imatrix",
    "quantize",
    "split",
    "base_logits",
    "evaluate",
    "report",
    "card",
    "exl2_measure",
    "exl2_quantize",
    "exl2_evaluate",
    "fetch",
]
STEPS: tuple[str, ...] = get_args(Step)

MIB = 2**20
GB = 10**9
UNKNOWN_BYTES = 16 * GB

# A cluster's job runs the step below a Snakemake of its own.
SNAKEMAKE_MB = 400


class Memory(NamedTuple):
    """Main memory of a step: fixed + min(small x input, cap + large x input).

    The largest tensor decides what a streaming step holds. In a small model it is most of the file
    (the embedding is a quarter of a 1B model), in a large one a small part (1.5% of a 70B model);
    hence two slopes.
    """

    fixed_mb: int
    """Interpreter, libraries and buffers that do not grow with the model."""
    small: float
    """Slope for small models: copies of the whole input."""
    cap_mb: int
    """Where the second slope starts."""
    large: float
    """Slope for large models: copies of the largest tensors."""


MEMORY: dict[str, Memory] = {
    # mergekit reads lazily, tensor by tensor, but in every model at once, as float32 with a task
    # vector each, and keeps up to 5 GB of finished tensors for their shard (ties of three models of
    # 1.5 GB: 4.4 GB, measured).
    "merge": Memory(2500, 1.5, 10000, 0.12),
    # The converter maps its input lazily and writes tensor by tensor; a tensor exists as bf16,
    # float32 and output (1.4 GB in all at 268 MB, measured). 5% covers a layer's experts, which are
    # stacked before they are written.
    "convert": Memory(2000, 3.0, 4000, 0.05),
    # llama.cpp maps the file. The pages are cache, but every batch reads all of them: with less
    # memory than the file a run is as slow as the disk. With -ngl the pages go to the GPU once, yet
    # a site that counts mapped pages as the job's (JobAcctGatherParams without UsePss) would kill a
    # smaller request.
    "imatrix": Memory(3000, 1.1, 0, 1.1),
    "base_logits": Memory(3000, 1.1, 0, 1.1),
    "evaluate": Memory(3000, 1.1, 0, 1.1),
    # llama-quantize holds one tensor as read, as float32 and as output: 4.8 times the 16-bit size of
    # the largest (1.3 GB at 268 MB; b10605, measured). It lets go of mapped pages as it goes.
    "quantize": Memory(1000, 5.0, 9000, 0.03),
    # One tensor at a time (271 MB at 268 MB, measured).
    "split": Memory(1000, 1.0, 4000, 0.02),
    "report": Memory(1500, 0.0, 0, 0.0),
    "card": Memory(1000, 0.0, 0, 0.0),
    # exllamav2's own figures: 16 GB for 7B, 64 GB for 70B: a layer, and the hidden states of every
    # calibration row.
    "exl2_measure": Memory(11000, 0.4, 0, 0.4),
    "exl2_quantize": Memory(11000, 0.4, 0, 0.4),
    # Loads tensor by tensor into the GPU; the safetensors are mapped.
    "exl2_evaluate": Memory(8000, 0.4, 0, 0.4),
    "fetch": Memory(1500, 0.0, 0, 0.0),
}


def mem_mb(step: Step, input_bytes: int = 0, attempt: int = 1) -> int:
    """Main memory in MiB for one job of `step`; at least 1000, which Snakemake needs beside it."""
    size = (input_bytes or UNKNOWN_BYTES) / MIB
    need = MEMORY[step]
    first = SNAKEMAKE_MB + need.fixed_mb
    first += min(need.small * size, need.cap_mb + need.large * size)
    return max(1000, round(first * 2 ** (attempt - 1)))


class Time(NamedTuple):
    """Wall time of a step: fixed + input / mb_per_s + compute, on 8 cores of a common server."""

    fixed_min: int
    """Queue noise, imports, a cold file system."""
    mb_per_s: float
    """MB of input done in a second, reading and writing on a shared file system included."""


TIME: dict[str, Time] = {
    # ties, three models, two busy cores: 12 MB/s (measured); most methods are faster.
    "merge": Time(20, 15),
    "convert": Time(15, 60),
    # Reading the model; the compute is added from the number of tokens (`TOKENS_PER_S`).
    "imatrix": Time(15, 100),
    "base_logits": Time(15, 100),
    "evaluate": Time(15, 100),
    # The slowest types decide: IQ1 to IQ3 search grids at about a tenth of the speed of the
    # K-quants.
    "quantize": Time(15, 10),
    "split": Time(10, 60),
    "report": Time(10, 1000),
    "card": Time(10, 1000),
    # Layer by layer; a measurement tries twelve settings a layer and costs as much as a
    # quantization or more. Owners of one 24 GB card report 2 to 4 hours for 70B.
    "exl2_measure": Time(20, 6),
    "exl2_quantize": Time(20, 8),
    "exl2_evaluate": Time(15, 50),
    "fetch": Time(10, 20),
}

# Prefill tokens a second of a 1B model in 16 bits: a GPU of 80 GB at 40% of its peak, and 8 cores.
TOKENS_PER_S = {"gpu": 60_000.0, "cpu": 120.0}
# Tokens of a run where the caller does not say: 200 chunks of 512 for an imatrix, 600 for an
# evaluation.
TOKENS = {"imatrix": 100_000, "base_logits": 300_000, "evaluate": 300_000, "exl2_evaluate": 300_000}
# Smallest bytes per weight that the input may have: an evaluation also reads 2-bit files.
BYTES_PER_WEIGHT = {"imatrix": 2.0, "base_logits": 2.0, "evaluate": 0.5, "exl2_evaluate": 0.5}


def runtime_min(
    step: Step, input_bytes: int = 0, attempt: int = 1, tokens: int = 0, gpu: bool = False
) -> int:
    """Wall time in minutes for one job of `step`.

    `tokens` is what an imatrix or an evaluation reads (chunks x context; 0: `TOKENS`); `gpu`:
    layers are offloaded. EXL2 always runs on a GPU.
    """
    size = input_bytes or UNKNOWN_BYTES
    cost = TIME[step]
    minutes = cost.fixed_min + size / (cost.mb_per_s * 1e6) / 60
    if step in TOKENS:
        billions = size / BYTES_PER_WEIGHT[step] / 1e9
        rate = TOKENS_PER_S["gpu" if gpu or step == "exl2_evaluate" else "cpu"]
        minutes += (tokens or TOKENS[step]) * billions / rate / 60
    return round(minutes * 2 ** (attempt - 1))


# Scratch and output together, as a share of the input. The plan knows the outputs better; this is
# for scratch alone.
DISK = {
    "merge": 1.0,  # the output of n models is 1/n of the input, of a stacked one up to all of it
    "convert": 1.0,
    "imatrix": 0.01,
    "quantize": 1.0,  # Q8_0 is half; F32 never
    "split": 1.0,
    "base_logits": 0.0,  # chunks and vocabulary decide, not weights
    "evaluate": 0.0,
    "report": 0.0,
    "card": 0.0,
    "exl2_measure": 0.1,
    "exl2_quantize": 1.1,  # every quantized layer in the work directory, then again as the output
    "exl2_evaluate": 0.0,
    "fetch": 1.0,
}


def disk_mb(step: Step, input_bytes: int = 0) -> int:
    """Scratch and output in MiB that one job of `step` may write; an upper bound, at least 100."""
    return max(100, round(DISK[step] * (input_bytes or UNKNOWN_BYTES) / MIB))


# The whole model sits on the GPUs (llama.cpp with all layers offloaded; an EXL2 evaluation).
WHOLE_ON_GPU = frozenset({"imatrix", "base_logits", "evaluate", "exl2_evaluate"})
LAYER_ON_GPU = frozenset({"exl2_measure", "exl2_quantize"})
MAX_GPUS = 8


def gpus(step: Step, input_bytes: int = 0, gpu_mb: int = 80_000) -> int:
    """GPUs of `gpu_mb` MiB for one job of `step`: 0 for a step that never uses one.

    EXL2 goes layer by layer and needs one card of 24 GB for a 70B model. A llama.cpp step that is
    not offloaded must not ask: the caller decides that, not the step. 15% above the weights is for
    context and buffers.
    """
    if step in LAYER_ON_GPU:
        return 1
    if step not in WHOLE_ON_GPU:
        return 0
    need = 1.15 * (input_bytes or UNKNOWN_BYTES) / MIB + 1500
    return min(MAX_GPUS, max(1, -(-int(need) // gpu_mb)))

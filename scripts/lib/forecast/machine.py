"""The cores and GPUs that the steps of a run share.

The threads of a job, as Snakemake counts them, are its share of the cores. A tool whose threads
wait for nothing gets all cores all the same (`Stage.takes_all`): while others run they share the
cores, and when it is the last one it has them all. So that a run on fewer cores than the machine
has keeps to them, its steps may only use so many processors (`keep_to`).
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib.stages.stage import Stage

# Cores of a common node of a cluster, on which a job is to find its share.
NODE_CORES = 16
GPU_THREADS = 2
MANY = 1000  # jobs of a kind, if their number is not known


@dataclass(frozen=True)
class Machine:
    """What a run may use.

    cores: threads that may run at once here; None if the jobs go to a cluster. gpu_rules: the rules
    whose jobs get GPUs by a profile. gpu_mb: MiB of GPU memory; None if it is not known. nodes:
    jobs that the cluster runs at once.
    """

    cores: int | None = None
    gpu_rules: frozenset[str] = frozenset()
    gpu_mb: int | None = None
    nodes: int = 1

    @property
    def all_cores(self) -> int:
        """The cores of the whole run; of a cluster's job 8 are counted."""
        return self.cores or 8 * self.nodes

    @classmethod
    def read(cls, text: str) -> "Machine":
        """The machine that `to_json` has written."""
        cores, rules, *more = json.loads(text)
        return cls(cores, frozenset(rules), *more)

    def to_json(self) -> str:
        """The machine as JSON, for a program: [cores, [rules], gpu_mb, nodes]."""
        return json.dumps([self.cores, sorted(self.gpu_rules), self.gpu_mb, self.nodes])

    def has_gpu(self, stage: Stage) -> bool:
        """Whether jobs of a stage run on a GPU."""
        return stage.on_gpu or stage.rule in self.gpu_rules

    def threads(self, stage: Stage, size: int, jobs: int) -> int:
        """Threads that a job counts for. size: bytes that it reads. jobs: those of its kind.

        Where the GPU does the work, 2: one waits for the GPU, and one does what is left. Those
        that get all cores whatever they count for leave room for such a job beside them.
        """
        if self.has_gpu(stage) and stage.fixed_threads is None:
            return min(GPU_THREADS, self.cores or GPU_THREADS)
        if self.cores is None:
            return stage.threads(size, NODE_CORES, MANY)
        room = GPU_THREADS if stage.takes_all and self.gpu_rules else 0
        return stage.threads(size, max(1, self.cores - room), jobs)


def rules_on_gpu(given: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    """The rules whose jobs get GPUs. given: Snakemake's `set-resources`, {rule: {name: resource}}.

    A rule that reuses another (`merge_reclaimed`) counts as that one.
    """
    raw = {rule: getattr(named.get("gpu"), "raw", None) for rule, named in given.items()}
    found = (rule for rule, gpus in raw.items() if gpus not in (None, 0, "0"))
    return frozenset(rule.removesuffix("_reclaimed") for rule in found)


def keep_to(cores: int) -> None:
    """Let this process, and all that it starts, use `cores` processors: those least busy now.

    Does nothing if there are no more than that, or where there is no way to do it (macOS).
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))
    if cores >= len(allowed):
        return
    import psutil  # of Snakemake

    busy = psutil.cpu_percent(interval=0.1, percpu=True)
    os.sched_setaffinity(
        0, sorted(allowed, key=lambda cpu: busy[cpu] if cpu < len(busy) else 0.0)[:cores]
    )


def gpus(fact: str, hidden: bool = False) -> list[str]:
    """A fact on each GPU that can be seen here: its `index`, `name`, or `memory.total` in MiB.

    hidden: also on those that CUDA_VISIBLE_DEVICES hides.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu=index,uuid,{fact}", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    found = [line.split(", ") for line in lines if line.count(", ") == 2]
    if not hidden and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        found = [gpu for gpu in found if {gpu[0], gpu[1]} & set(visible.split(","))]
    return [said for _, _, said in found]


def gpu_memory_mb() -> int | None:
    """MiB of memory of all GPUs that can be seen here, together; None if that is not known."""
    return sum(int(memory) for memory in gpus("memory.total") if memory.isdecimal()) or None

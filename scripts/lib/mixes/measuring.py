"""Measures the KL divergence of a model's mixes on a text, several side by side."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from lib.errors import UserError
from lib.formats.against_base import evaluate
from lib.formats.divergence import Scored

CONTEXT = 512  # tokens in a chunk


class Machine(NamedTuple):
    """What measurements run on.

    tools: directory of llama.cpp's tools. threads: of all measurements together. gpu_layers: layers
    on a GPU. side_by_side: measurements at once, each on its share of the threads and on one GPU.
    """

    tools: Path
    threads: int
    gpu_layers: int = 0
    side_by_side: int = 1

    def perplexity(self, model: Path, text: Path, chunks: int, alone: bool = True) -> list[str]:
        """The command of llama-perplexity for one model. alone: it has all threads."""
        threads = self.threads if alone else max(1, self.threads // self.side_by_side)
        typed = [f"{self.tools}/llama-perplexity", "--model", str(model), "--file", str(text)]
        typed += ["--ctx-size", str(CONTEXT), "--chunks", str(chunks), "--threads", str(threads)]
        return [*typed, "--n-gpu-layers", str(self.gpu_layers)]

    def environments(self) -> Iterator[dict[str, str]]:
        """The environment of each measurement that runs beside others: it shows one GPU."""
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        for number in range(self.side_by_side):
            shown = {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]}
            yield dict(os.environ) | (shown if self.gpu_layers and self.side_by_side > 1 else {})


class Bench:
    """Measures models against the unquantized one on one text.

    base: the unquantized GGUF. chunks: of the text, CONTEXT tokens each. logits: where the base
    logits are kept, which are made at once if they are not there.
    """

    def __init__(self, machine: Machine, base: Path, text: Path, chunks: int, logits: Path):
        self.machine, self.text, self.chunks, self.logits = machine, text, chunks, logits
        if not logits.exists():
            unfinished = logits.with_name(f".{logits.name}")
            command = machine.perplexity(base, text, chunks)
            if subprocess.run([*command, "--kl-divergence-base", str(unfinished)]).returncode:
                raise UserError(f"{base}: llama-perplexity fails on {text}; its output is above")
            os.replace(unfinished, logits)
        self._environments: SimpleQueue = SimpleQueue()
        for environment in machine.environments():
            self._environments.put(environment)

    def scored(self, model: Path, alone: bool = True) -> Scored:
        """What is measured of each token of the text.

        model: GGUF, or the first of its files. alone: no other measurement runs beside it.
        """
        environment = self._environments.get()
        command = self.machine.perplexity(model, self.text, self.chunks, alone)
        try:
            with self.logits.open("rb") as base:
                return evaluate(base, command, 1, environment)[0]
        finally:
            self._environments.put(environment)

    def kld(self, model: Path, alone: bool = True) -> float:
        """The mean KL divergence from the unquantized model, in nats a token; as `scored`."""
        return float(self.scored(model, alone).kld.mean())

    def each(self, tasks: Iterable[Any], measure: Any) -> Iterator[tuple[Any, float]]:
        """Yield (task, measure(task)), several side by side, in the order of the tasks."""
        tasks = list(tasks)
        with ThreadPoolExecutor(self.machine.side_by_side) as pool:
            try:
                yield from zip(tasks, pool.map(measure, tasks), strict=True)
            finally:
                pool.shutdown(cancel_futures=True)


def halves(text: Path, first: Path, second: Path) -> None:
    """Cut a text into two files, at the end of the line in its middle."""
    content = text.read_text(encoding="utf-8")
    middle = content.find("\n", len(content) // 2) + 1 or len(content) // 2
    for path, part in ((first, content[:middle]), (second, content[middle:])):
        path.write_text(part, encoding="utf-8")

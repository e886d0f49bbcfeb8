"""Evaluates a model by another engine than llama.cpp, on the tokens that base logits hold."""

import argparse
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lib.formats.against_base import compare
from lib.formats.base_logits import Logits
from lib.formats.divergence import MIN_LOG_P, summary
from lib.formats.json_file import read_json


class EngineLogits:
    """The logits of a model on the tokens of base logits, with the interface of Logits.

    base: the base logits. vocabulary: how many tokens the model knows. bos: what may be its BOS.
    """

    def __init__(self, base: Logits, vocabulary: int, bos: Collection[int | None]):
        self.tokens, self.vocabulary = base.tokens, vocabulary
        # Where llama.cpp puts BOS before a text, it replaces the first token of each chunk by it.
        self._read = base.tokens.copy()
        if (first := int(base.tokens[0, 0])) in bos:
            self._read[:, 0] = first

    def log_probabilities(self, chunk: np.ndarray) -> np.ndarray:
        """Those at the scored positions of a chunk, in nats: float32 (positions, vocabulary).

        chunk: int32 (context,).
        """
        raise NotImplementedError

    def rows(self) -> Iterator[np.ndarray]:
        """Yield the log probabilities at each scored position, in nats: float32 (vocabulary,).

        None is less than 16 below the greatest, as in base logits.
        """
        for number, chunk in enumerate(self._read, 1):
            found = self.log_probabilities(chunk)
            print(f"chunk {number} of {len(self._read)}", flush=True)
            yield from np.maximum(found, found.max(axis=-1, keepdims=True) + MIN_LOG_P)

    def log_p(self, row: np.ndarray, tokens: object = slice(None)) -> np.ndarray:
        """As Logits.log_p."""
        return row[tokens]

    def ranks(self, row: np.ndarray) -> np.ndarray:
        """As Logits.ranks."""
        return row


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line that `write_evaluation` needs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path, help="model directory, quantized or not")
    parser.add_argument("--base", type=Path, required=True, help="base logits")
    parser.add_argument("--corpus", required=True, help="name of their text, for the JSON")
    parser.add_argument("--floor", type=Path, help="evaluation of the unquantized model, JSON")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    return parser


def write_evaluation(
    args: argparse.Namespace,
    own: Callable[[Logits], EngineLogits],
    threads: int,
    more: dict[str, Any],
) -> None:
    """Compare a model with base logits, and write the JSON that scripts/evaluate.py writes.

    own(base logits): those of the model. threads: that compare. more: further entries. With --floor
    there is also `floor`, {mean, error}: the KLD of the unquantized model by the same engine.
    """
    with args.base.open("rb") as file:
        base = Logits(file)
        found = summary(compare(base, own(base), threads))
    chunks, context = base.tokens.shape
    found |= {"chunks": chunks, "corpus": args.corpus, "context": context} | more
    if args.floor:
        floor = read_json(args.floor)["kld"]
        found["floor"] = {key: floor[key] for key in ("mean", "error")}
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

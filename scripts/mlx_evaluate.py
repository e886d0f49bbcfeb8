"""Evaluate a model directory in mlx-lm against base logits: KLD, perplexity, top-token agreement.

mlx runs it on the tokens that the base logits hold, in the same chunks, with activations of 32
bits: in 16 a CPU takes ten times as long, and what is measured would be their rounding. It is
measured as scripts/evaluate.py measures a GGUF file, and the JSON has the same keys; with --floor
also `floor`, {mean, error}: the KLD of the unquantized model itself by this engine. To be run in
resources/environments/mlx.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lib.errors import program
from lib.formats.against_base import compare
from lib.formats.base_logits import Logits
from lib.formats.divergence import MIN_LOG_P, scored, summary
from lib.formats.exllamav2 import exllama_config


class Own:
    """The logits of a model on the tokens of base logits, with the interface of Logits."""

    def __init__(self, directory: Path, base: Logits):
        import mlx.core as mx
        from mlx_lm.utils import load_model, load_tokenizer

        # Of an unquantized model mlx_config.py has not rewritten the config.
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.model, config = load_model(directory, model_config=exllama_config(config))
        self.model.set_dtype(mx.float32)
        self.tokens = base.tokens.copy()
        self.vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
        # Where llama.cpp puts BOS before a text, it replaces the first token of each chunk by it.
        first = base.tokens[0, 0]
        self.read = base.tokens.copy()
        if first in (load_tokenizer(directory).bos_token_id, config.get("bos_token_id")):
            self.read[:, 0] = first

    def rows(self) -> Iterator[np.ndarray]:
        """Yield the log probabilities at each scored position, in nats: float32 (vocabulary,).

        None is less than 16 below the greatest, as in base logits.
        """
        import mlx.core as mx

        print(f"over {len(self.read)} chunks", flush=True)
        for number, chunk in enumerate(self.read, 1):
            logits = self.model(mx.array(chunk)[None])[0, scored(len(chunk)), : self.vocabulary]
            found = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
            yield from np.maximum(found, found.max(axis=-1, keepdims=True) + MIN_LOG_P)
            print(f"[{number}]0", flush=True)

    def log_p(self, row: np.ndarray, tokens: object = slice(None)) -> np.ndarray:
        """As Logits.log_p."""
        return row[tokens]

    def ranks(self, row: np.ndarray) -> np.ndarray:
        """As Logits.ranks."""
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model directory, quantized or not")
    parser.add_argument("--base", type=Path, required=True, help="base logits")
    parser.add_argument("--corpus", required=True, help="name of their text, for the JSON")
    parser.add_argument("--floor", type=Path, help="evaluation of the unquantized model, JSON")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    with args.base.open("rb") as file:
        base = Logits(file)
        found = summary(compare(base, Own(args.model, base), threads=1))
    chunks, context = base.tokens.shape
    found |= {"chunks": chunks, "corpus": args.corpus, "context": context, "engine": "mlx"}
    if args.floor:
        floor = json.loads(args.floor.read_text(encoding="utf-8"))["kld"]
        found["floor"] = {key: floor[key] for key in ("mean", "error")}
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

"""Evaluate a model directory in mlx-lm against base logits: KLD, perplexity, top-token agreement.

mlx runs it on the tokens that the base logits hold, in the same chunks, with activations of 32
bits: in 16 a CPU takes ten times as long, and what is measured would be their rounding. It is
measured as scripts/evaluate.py measures a GGUF file, and the JSON has the same keys; with --floor
also `floor`, {mean, error}: the KLD of the unquantized model itself by this engine. To be run in
resources/environments/mlx.
"""

import json
from pathlib import Path

import numpy as np

from lib.errors import program
from lib.formats.base_logits import Logits
from lib.formats.by_engine import EngineLogits, arguments, write_evaluation
from lib.formats.divergence import scored
from lib.formats.exllamav2 import exllama_config


class Own(EngineLogits):
    """A model's logits by mlx."""

    def __init__(self, directory: Path, base: Logits):
        import mlx.core as mx
        from mlx_lm.utils import load_model, load_tokenizer

        # Of an unquantized model mlx_config.py has not rewritten the config.
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.model, config = load_model(directory, model_config=exllama_config(config))
        self.model.set_dtype(mx.float32)
        vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
        bos = {load_tokenizer(directory).bos_token_id, config.get("bos_token_id")}
        super().__init__(base, vocabulary, bos)

    def log_probabilities(self, chunk: np.ndarray) -> np.ndarray:
        import mlx.core as mx

        logits = self.model(mx.array(chunk)[None])[0, scored(len(chunk)), : self.vocabulary]
        return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def main() -> None:
    args = arguments(__doc__).parse_args()
    write_evaluation(args, lambda base: Own(args.model, base), threads=1, more={"engine": "mlx"})


if __name__ == "__main__":
    program(main)

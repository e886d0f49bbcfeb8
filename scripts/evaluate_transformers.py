"""Evaluate a model directory against base logits: KLD, perplexity, top-token agreement.

transformers runs it in 32-bit floats, on the tokens that the base logits hold, in the same chunks.
It is measured as scripts/evaluate.py measures a GGUF file, and the JSON has the same keys; with
--floor also `floor`, {mean, error}: the KLD of the unquantized model itself by this engine. To be
run in resources/environments/llmcompressor.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lib.errors import program
from lib.formats.against_base import compare
from lib.formats.base_logits import Logits
from lib.formats.corpora import calibration_option, shared
from lib.formats.divergence import MIN_LOG_P, scored, summary
from lib.formats.in_transformers import load
from lib.formats.json_file import read_json


def bos_tokens(directory: Path) -> set[int | None]:
    """What a model's tokenizer and its config.json say is BOS."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(directory).get_text_config()
    return {AutoTokenizer.from_pretrained(directory).bos_token_id, config.bos_token_id}


class Own:
    """The logits of a model on the tokens of base logits, with the interface of Logits."""

    def __init__(self, directory: Path, base: Logits, device: str):
        self.model = load(directory).to(device).float()
        self.tokens = base.tokens
        self.vocabulary = self.model.get_output_embeddings().weight.shape[0]
        # Where llama.cpp puts BOS before a text, it replaces the first token of each chunk by it.
        first = int(base.tokens[0, 0])
        self.bos = first if first in bos_tokens(directory) else None

    def rows(self) -> Iterator[np.ndarray]:
        """Yield the log probabilities at each scored position, in nats: float32 (vocabulary,).

        None is less than 16 below the greatest, as in base logits.
        """
        import torch

        count = len(self.tokens)
        print(f"over {count} chunks", flush=True)
        for number, chunk in enumerate(self.tokens, 1):
            tokens = torch.tensor(chunk, dtype=torch.int64, device=self.model.device)
            if self.bos is not None:
                tokens[0] = self.bos
            with torch.inference_mode():
                logits = self.model(tokens[None], use_cache=False).logits[0, scored(len(chunk))]
                found = torch.log_softmax(logits.float(), dim=-1)
                least = found.amax(dim=-1, keepdim=True) + MIN_LOG_P
                yield from torch.maximum(found, least).cpu().numpy()
            print(f"[{number}]", flush=True)

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
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--corpus", required=True, help="name of the text, for the JSON")
    parser.add_argument("--floor", type=Path, help="evaluation of the unquantized model, JSON")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="that compare (default: 1)")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    calibration_option(parser)
    args = parser.parse_args()
    with args.base.open("rb") as file:
        base = Logits(file)
        found = summary(compare(base, Own(args.model, base, args.device), args.threads))
    chunks, context = base.tokens.shape
    found |= {"chunks": chunks, "corpus": args.corpus, "context": context}
    found |= {"engine": "transformers", "shared": shared(args.text, args.calibration)}
    if args.floor:
        floor = read_json(args.floor)["kld"]
        found["floor"] = {key: floor[key] for key in ("mean", "error")}
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

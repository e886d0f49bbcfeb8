"""Measure the perplexity of a GGUF file on a text, chunk by chunk.

llama-perplexity runs the file over the text and writes its logits into a pipe; they are not stored.
The JSON is {perplexity: {mean, error}, per_chunk, scored, tokens, chunks, corpus, context, engine}:

    perplexity  exp of the mean negative log-likelihood of the second half of each chunk's tokens;
                error is one standard error, taken between chunks (of fewer than 10 chunks as if
                tokens were independent)
    per_chunk   nll, the mean negative log-likelihood of each chunk, nats a token
    scored      tokens that count in a chunk
    tokens      a digest of how the text was cut into tokens, whatever numbers they have: where it
                differs, chunks are other parts of the text, and perplexities are not comparable
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np

from lib.errors import UserError, program
from lib.formats.base_logits import Logits
from lib.formats.divergence import mean_and_error, scored


def likelihoods(command: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The negative log-likelihood of each scored token, in nats: float64 (chunks, scored).

    Also returns the tokens: integers (chunks, context).
    command: llama-perplexity with all flags but --kl-divergence-base. Raises UserError if it fails,
    writes too little, or what it computes is not finite.
    """
    reading, writing = os.pipe()
    typed = [*command, "--kl-divergence-base", f"/dev/fd/{writing}"]
    with subprocess.Popen(typed, pass_fds=[writing]) as tool, open(reading, "rb") as pipe:
        os.close(writing)
        try:
            logits = Logits(pipe)
            targets = logits.tokens[:, scored(logits.tokens.shape[1]).start + 1 :]
            rows = zip(logits.rows(), targets.ravel(), strict=True)
            found = [-float(logits.log_p(row, target)) for row, target in rows]
        except (EOFError, ValueError) as error:
            pipe.close()
            raise UserError(f"{command[0]} ended with status {tool.wait()}: {error}") from None
    if tool.returncode:
        raise UserError(f"{command[0]} ended with status {tool.returncode}")
    values = np.array(found).reshape(targets.shape)
    if not np.isfinite(values).all():
        raise UserError("the model's output is not finite")
    return values, logits.tokens


def digest(tokens: np.ndarray) -> str:
    """A digest of tokens that stays when they are numbered otherwise: of what equals what."""
    _, first, place = np.unique(tokens, return_index=True, return_inverse=True)
    return hashlib.sha256(first[place].astype("<i8").tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="text, UTF-8")
    parser.add_argument("--corpus", required=True, help="name of the text, for the JSON")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument(
        "command", nargs="+", help="after --: llama-perplexity, with the file and flags"
    )
    args = parser.parse_args()
    values, tokens = likelihoods([*args.command, "--file", str(args.text)])
    mean, error = mean_and_error(values)
    chunks, width = values.shape
    found = {
        "perplexity": {"mean": math.exp(mean), "error": math.exp(mean) * error},
        "per_chunk": {"nll": [float(f"{nll:.7g}") for nll in values.mean(axis=1)]},
        "scored": width,
        "tokens": digest(tokens),
        "chunks": chunks,
        "corpus": args.corpus,
        "context": tokens.shape[1],
        "engine": "llama.cpp",
    }
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

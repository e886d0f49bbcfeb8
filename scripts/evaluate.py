"""Evaluate a GGUF file against the unquantized model: KLD, perplexity, top-token agreement.

llama-perplexity runs the file over the text and writes its logits into a pipe, where they are
compared with the base logits, token by token. So nothing is stored, and there is more to see than
in the tool's own report, whose figures these are (lib/formats/divergence.py).

The JSON is {kld, perplexity, same_top, flips, delta_p, per_chunk, chunks, corpus, context, engine}:

    kld         nats a token: mean, error, max, p99_9, p99 … min
    perplexity  mean, error, base, base_error, correlation, log_ratio, ratio, difference, and errors
    same_top    the share of tokens for which both models find the same one the most probable
    flips       the share of tokens where the unquantized model's most probable one is that of the
                text and this one's is not (lost), and the other way round (gained)
    delta_p     what is added to the probability of the text's token
    per_chunk   kld and nll (negative log-likelihood) of each chunk, nats a token

    shared      {calibration text: the share of the text's paragraphs that are in it too}

`error` is one standard error; that of X is X_error. It is taken between chunks, whose tokens are
not independent of each other (of fewer than 10 chunks, as if they were).
"""

import argparse
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from lib.errors import UserError, program
from lib.formats.base_logits import Logits
from lib.formats.corpora import calibration_option, shared
from lib.formats.divergence import MIN_LOG_P, Scored, scored, summary

ROWS = 64


def compare(base: Logits, own: Logits, threads: int) -> Scored:
    """The values of every scored token.

    Raises UserError if the two are not of the same text, tokenizer and size of vocabulary.
    """
    if own.vocabulary != base.vocabulary:
        raise UserError(
            f"its vocabulary has {own.vocabulary} tokens, the unquantized model's {base.vocabulary}"
        )
    if not np.array_equal(own.tokens, base.tokens):
        raise UserError("it reads the text as other tokens than the unquantized model")

    def token(p: np.ndarray, q: np.ndarray, target: int) -> list[float]:
        log_p = base.log_p(p)
        likely = np.flatnonzero(log_p > MIN_LOG_P)
        of_likely = log_p[likely]
        kld = (np.exp(of_likely) * (of_likely - own.log_p(q, likely))).sum(dtype=np.float64)
        top_p, top_q = base.ranks(p).argmax(), own.ranks(q).argmax()
        nll = -own.log_p(q, target), -log_p[target]
        return [*nll, kld, top_q == top_p, top_q == target, top_p == target]

    targets = base.tokens[:, scored(base.tokens.shape[1]).start + 1 :]
    of_base, of_own, found = base.rows(), own.rows(), []
    with ThreadPoolExecutor(threads) as pool:
        # All rows of a large vocabulary are gigabytes: so many at a time.
        for part in np.split(targets.ravel(), range(ROWS, targets.size, ROWS)):
            rows = (list(islice(rows, len(part))) for rows in (of_base, of_own))
            found += pool.map(token, *rows, part)
    return Scored(*np.array(found, dtype=np.float64).T.reshape(-1, *targets.shape))


def evaluate(base: IO[bytes], command: list[str], threads: int) -> tuple[Scored, Logits]:
    """Run llama-perplexity, and compare the logits that it writes with the base logits.

    command: without --kl-divergence-base. Raises UserError if it fails or writes too little.
    """
    reading, writing = os.pipe()
    typed = [*command, "--kl-divergence-base", f"/dev/fd/{writing}"]
    # The pipe is closed before the tool is waited for, which then cannot wait for a reader.
    with subprocess.Popen(typed, pass_fds=[writing]) as tool, open(reading, "rb") as pipe:
        os.close(writing)
        try:
            known = Logits(base)
            found = compare(known, Logits(pipe), threads)
        except (EOFError, ValueError) as error:
            pipe.close()
            raise UserError(f"{command[0]} ended with status {tool.wait()}: {error}") from None
    if tool.returncode:
        raise UserError(f"{command[0]} ended with status {tool.returncode}")
    return found, known


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="base logits")
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--corpus", required=True, help="name of the text, for the JSON")
    parser.add_argument("--threads", type=int, default=1, help="that compare (default: 1)")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument(
        "command", nargs="+", help="after --: llama-perplexity, with the file and flags"
    )
    calibration_option(parser)
    args = parser.parse_args()
    with args.base.open("rb") as base:
        command = [*args.command, "--file", str(args.text)]
        values, logits = evaluate(base, command, args.threads)
    chunks, context = logits.tokens.shape
    found = summary(values) | {"chunks": chunks, "corpus": args.corpus, "context": context}
    found |= {"engine": "llama.cpp", "shared": shared(args.text, args.calibration)}
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

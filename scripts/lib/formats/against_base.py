"""Compares a GGUF file with base logits while llama-perplexity runs it: nothing is stored."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import IO

import numpy as np

from lib.errors import UserError
from lib.formats.base_logits import Logits
from lib.formats.divergence import MIN_LOG_P, Scored, scored

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


def evaluate(
    base: IO[bytes], command: list[str], threads: int, environment: dict[str, str] | None = None
) -> tuple[Scored, Logits]:
    """Run llama-perplexity, and compare the logits that it writes with the base logits.

    command: without --kl-divergence-base. threads: that compare. environment: of the tool; None for
    that of this process. Raises UserError if it fails or writes too little.
    """
    reading, writing = os.pipe()
    typed = [*command, "--kl-divergence-base", f"/dev/fd/{writing}"]
    # The pipe is closed before the tool is waited for, which then cannot wait for a reader.
    with (
        subprocess.Popen(typed, pass_fds=[writing], env=environment) as tool,
        open(reading, "rb") as pipe,
    ):
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

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
from pathlib import Path

from lib.errors import program
from lib.formats.against_base import evaluate
from lib.formats.corpora import calibration_option, shared
from lib.formats.divergence import summary


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

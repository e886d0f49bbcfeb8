"""Turn the report of `llama-perplexity --kl-divergence` into the JSON of an evaluation.

The JSON is {kld, perplexity, same_top, delta_p, chunks, corpus, context, engine}. The first four
are objects: `mean` with its standard `error`, and what else the report has, such as kld.p99,
kld.max or perplexity.base. KLD is in nats per token; same_top and delta_p are fractions.

Exit status 75 means that the report is truncated and must be made again: llama-perplexity b10605
may exit with status 0 before its logger has written the last lines.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

from lib.errors import UserError, program

TRUNCATED = 75  # EX_TEMPFAIL of sysexits.h: try again

# The summary's lines, in the tool's order (tools/perplexity/perplexity.cpp, kl_divergence()):
# label, section, key. The JSON keeps all of them.
LINES = (
    ("Mean PPL(Q)", "perplexity", "mean"),
    ("Mean PPL(base)", "perplexity", "base"),
    ("Cor(ln(PPL(Q)), ln(PPL(base)))", "perplexity", "correlation"),
    ("Mean ln(PPL(Q)/PPL(base))", "perplexity", "log_ratio"),
    ("Mean PPL(Q)/PPL(base)", "perplexity", "ratio"),
    ("Mean PPL(Q)-PPL(base)", "perplexity", "difference"),
    ("Mean KLD", "kld", "mean"),
    ("Maximum KLD", "kld", "max"),
    ("99.9% KLD", "kld", "p99_9"),
    ("99.0% KLD", "kld", "p99"),
    ("95.0% KLD", "kld", "p95"),
    ("90.0% KLD", "kld", "p90"),
    ("Median KLD", "kld", "median"),
    ("10.0% KLD", "kld", "p10"),
    ("5.0% KLD", "kld", "p5"),
    ("1.0% KLD", "kld", "p1"),
    ("0.1% KLD", "kld", "p0_1"),
    ("Minimum KLD", "kld", "min"),
    ("Mean Δp", "delta_p", "mean"),
    ("Maximum Δp", "delta_p", "max"),
    ("99.9% Δp", "delta_p", "p99_9"),
    ("99.0% Δp", "delta_p", "p99"),
    ("95.0% Δp", "delta_p", "p95"),
    ("90.0% Δp", "delta_p", "p90"),
    ("75.0% Δp", "delta_p", "p75"),
    ("Median Δp", "delta_p", "median"),
    ("25.0% Δp", "delta_p", "p25"),
    ("10.0% Δp", "delta_p", "p10"),
    ("5.0% Δp", "delta_p", "p5"),
    ("1.0% Δp", "delta_p", "p1"),
    ("0.1% Δp", "delta_p", "p0_1"),
    ("Minimum Δp", "delta_p", "min"),
    ("RMS Δp", "delta_p", "rms"),
    ("Same top p", "same_top", "mean"),
)
# These are printed with an error, and are cut off if it is missing.
WITH_ERROR = {
    *("Mean PPL(Q)", "Mean PPL(base)", "Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)"),
    *("Mean PPL(Q)-PPL(base)", "Mean KLD", "Mean Δp", "RMS Δp", "Same top p"),
}
# Square roots of differences that rounding can make negative where the two models all but agree
# (the unquantized model against itself); the tool then prints a NaN, which says nothing.
ERROR_MAY_BE_NAN = {
    *("Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)", "Mean PPL(Q)-PPL(base)", "RMS Δp"),
}
IN_PERCENT = {"Cor(ln(PPL(Q)), ln(PPL(base)))", "Same top p"} | {
    label for label, section, _ in LINES if section == "delta_p"
}
NUMBER = r"[-+]?(?:\d+\.\d+|nan|inf)"
CHUNK = re.compile(rf"^ *(\d+) +{NUMBER} ± +{NUMBER} ", re.MULTILINE | re.IGNORECASE)


class TruncatedReport(Exception):
    """The report lacks lines, or the end of one, that the tool prints when it is done."""


def parse_report(text: str) -> dict:
    """All statistics of a report: {kld, perplexity, same_top, delta_p, chunks}.

    The first four are objects whose keys are in LINES. Percents become fractions; KLD is in nats
    per token. `X_error`, or `error` for a mean, is the standard error that the tool prints; it is
    None if the tool prints NaN because the two models all but agree.

    Raises TruncatedReport, and UserError for a value that is NaN or infinite.
    """
    # The columns of the summary are padded with a varying number of blanks.
    lines = {}
    for line in text.splitlines():
        label, colon, value = line.partition(":")
        if colon:
            lines[" ".join(label.split())] = value
    result: dict = {"kld": {}, "perplexity": {}, "same_top": {}, "delta_p": {}}
    for label, section, key in LINES:
        value, error = _numbers(label, lines.get(label))
        result[section][key] = value
        if label in WITH_ERROR:
            result[section]["error" if key == "mean" else f"{key}_error"] = error
    chunks = [int(n) for n in CHUNK.findall(text)]
    if not chunks or chunks != list(range(1, len(chunks) + 1)):
        raise TruncatedReport("rows of the table of chunks are missing")
    result["chunks"] = len(chunks)
    return result


def _numbers(label: str, value: str | None) -> tuple[float, float | None]:
    """(value, standard error) in a line of the summary; the error is None if there is none."""
    if value is None:
        raise TruncatedReport(f"no line `{label}`")
    unit = "%" if label in IN_PERCENT else ""
    error = rf" ± *({NUMBER})" if label in WITH_ERROR else "()"
    match = re.fullmatch(rf" *({NUMBER}){error} ?{unit}", value.rstrip(), re.IGNORECASE)
    if match is None:
        raise TruncatedReport(f"the line `{label}` is incomplete: {value.strip()!r}")
    mean = float(match[1])
    spread = float(match[2]) if match[2] else None
    if spread is not None and math.isnan(spread) and label in ERROR_MAY_BE_NAN:
        spread = None
    if not math.isfinite(mean) or not math.isfinite(spread or 0):
        raise UserError(f"`{label}` is {value.strip()}: the model's output is not finite")
    if unit:
        # The tool prints percents with three decimals; rounding only removes binary noise.
        mean = round(mean / 100, 8)
        spread = None if spread is None else round(spread / 100, 8)
    return mean + 0.0, spread  # -0.0 becomes 0.0


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="standard output of llama-perplexity, text")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--corpus", required=True, help="name of the text that was scored")
    parser.add_argument("--context", type=int, required=True, help="tokens in a chunk")
    args = parser.parse_args()
    try:
        result = parse_report(args.report.read_text(encoding="utf-8", errors="replace"))
    except TruncatedReport as error:
        print(f"kld_report: truncated: {args.report}: {error}", file=sys.stderr)
        return TRUNCATED
    except UserError as error:
        raise UserError(f"{args.report}: {error}") from None
    result |= {"corpus": args.corpus, "context": args.context, "engine": "llama.cpp"}
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    program(main)

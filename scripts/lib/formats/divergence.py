"""What is measured of a form, from per-token values of any engine.

The definitions are those of kl_divergence() in tools/perplexity/perplexity.cpp of llama.cpp b10605,
but for the errors: the tool takes tokens for independent, and its errors came out half as large as
the differences between chunks say (docs/evaluation.md).
"""

import math
from typing import NamedTuple

import numpy as np

from lib.errors import UserError

# What the reference finds less probable than exp(-16) is left out, as by llama-perplexity.
MIN_LOG_P = -16.0
ENOUGH = 10  # chunks, from which on errors are taken between them
KLD_QUANTILES = {
    "max": 1, "p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "median": 0.5,
    "p10": 0.1, "p5": 0.05, "p1": 0.01, "p0_1": 0.001, "min": 0,
}  # fmt: skip
DELTA_P_QUANTILES = KLD_QUANTILES | {"p75": 0.75, "p25": 0.25}


def windows(tokens: np.ndarray, context: int, chunks: int | None, bos: int | None) -> np.ndarray:
    """Cut `tokens`, an array (n,), into rows of `context` tokens: int64, (rows, context).

    Tokens at the end that do not fill a row are left out.
    chunks: the greatest number of rows; all if it is None or negative.
    bos: the token that replaces the first of each row; None if the model has none.
    Raises UserError if there are fewer than 2 * context tokens.
    """
    if len(tokens) < 2 * context:
        raise UserError(
            f"{len(tokens)} tokens are too few for a context of {context}: at least {2 * context}"
        )
    count = len(tokens) // context
    if chunks is not None and chunks >= 0:
        count = min(chunks, count)
    rows = np.array(tokens[: count * context], dtype=np.int64).reshape(count, context)
    if bos is not None:
        rows[:, 0] = bos
    return rows


def scored(context: int) -> slice:
    """The positions of a window of `context` tokens whose output is scored: its second half.

    Each is scored against the token that follows, so the last position is not among them.
    """
    return slice(context // 2, context - 1)


class Scored(NamedTuple):
    """The values of every scored token; each is an array (chunks, scored positions).

    nll, nll_base: negative log-likelihood of the text's token under the model and under the
    reference, in nats. kld: the KL divergence between the two, in nats. same_top: whether both find
    the same token the most probable. right, right_base: whether that is the text's.
    """

    nll: np.ndarray
    nll_base: np.ndarray
    kld: np.ndarray
    same_top: np.ndarray
    right: np.ndarray
    right_base: np.ndarray


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of `values` (chunks, n) and its standard error.

    The error is that of the means of chunks. Of fewer than ENOUGH chunks it is that of the values,
    as if they were independent.
    """
    parts = values.mean(axis=1) if len(values) >= ENOUGH else values.reshape(-1)
    return float(values.mean()), float(parts.std(ddof=1) / math.sqrt(len(parts)))


def summary(values: Scored) -> dict:
    """The statistics of all scored tokens, as scripts/evaluate.py describes them.

    Raises UserError if a value is not finite, and for fewer than 100 tokens.
    """
    values = Scored(*(np.asarray(array, dtype=np.float64) for array in values))
    if not all(np.isfinite(array).all() for array in values):
        raise UserError("the model's output is not finite")
    if values.kld.size < 100:
        raise UserError(f"{values.kld.size} scored tokens are too few for statistics: at least 100")
    lost, lost_error = mean_and_error(values.right_base * (1 - values.right))
    gained, gained_error = mean_and_error(values.right * (1 - values.right_base))
    flips = {"lost": lost, "lost_error": lost_error}
    return {
        "kld": _with_quantiles(values.kld, KLD_QUANTILES),
        "perplexity": _perplexity(values.nll, values.nll_base),
        "same_top": _figure(values.same_top),
        "flips": flips | {"gained": gained, "gained_error": gained_error},
        "delta_p": _delta_p(np.exp(-values.nll) - np.exp(-values.nll_base)),
        "per_chunk": {"kld": _per_chunk(values.kld), "nll": _per_chunk(values.nll)},
    }


def _figure(values: np.ndarray) -> dict[str, float]:
    return dict(zip(("mean", "error"), mean_and_error(values), strict=True))


def _per_chunk(values: np.ndarray) -> list[float]:
    return [float(f"{mean:.7g}") for mean in values.mean(axis=1)]


def _with_quantiles(values: np.ndarray, quantiles: dict[str, float]) -> dict[str, float]:
    found = np.quantile(values, list(quantiles.values()))
    return _figure(values) | dict(zip(quantiles, map(float, found), strict=True))


def _perplexity(nll: np.ndarray, nll_base: np.ndarray) -> dict[str, float | None]:
    (log, log_error), (log_base, log_base_error) = mean_and_error(nll), mean_and_error(nll_base)
    log_ratio, log_ratio_error = mean_and_error(nll - nll_base)
    value, base, ratio = math.exp(log), math.exp(log_base), math.exp(log_ratio)
    varies = nll.std() > 0 and nll_base.std() > 0
    return {
        "mean": value,
        "error": value * log_error,
        "base": base,
        "base_error": base * log_base_error,
        "correlation": float(np.corrcoef(nll.ravel(), nll_base.ravel())[0, 1]) if varies else None,
        "log_ratio": log_ratio,
        "log_ratio_error": log_ratio_error,
        "ratio": ratio,
        "ratio_error": ratio * log_ratio_error,
        "difference": value - base,
        "difference_error": mean_and_error(value * nll - base * nll_base)[1],
    }


def _delta_p(delta: np.ndarray) -> dict[str, float | None]:
    square, square_error = mean_and_error(delta * delta)
    rms = math.sqrt(square)
    result = _with_quantiles(delta, DELTA_P_QUANTILES)
    return result | {"rms": rms, "rms_error": 0.5 / rms * square_error if rms else None}

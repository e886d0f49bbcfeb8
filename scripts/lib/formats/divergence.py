"""The statistics of `llama-perplexity --kl-divergence`, from per-token values of any engine.

The definitions are those of kl_divergence() in tools/perplexity/perplexity.cpp of llama.cpp b10605.
The keys are those of kld_report.py.
"""

import math

import numpy as np

from lib.errors import UserError

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


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of `values` (n,) and its standard error, which is 0 for 10 values or fewer."""
    count = len(values)
    mean = values.sum() / count
    variance = (values * values).sum() / count - mean * mean
    return float(mean), math.sqrt(variance / (count - 1)) if variance > 0 and count > 10 else 0.0


def summary(
    nll: np.ndarray,
    nll_base: np.ndarray,
    kld: np.ndarray,
    same_top: np.ndarray,
) -> dict:
    """The statistics of all scored tokens, with the keys of kld_report.py.

    All arrays are (n,), one value for each scored token.
    nll, nll_base: its negative log-likelihood under the model and under the reference, in nats.
    kld: the KL divergence between the two, in nats.
    same_top: whether both find the same token the most probable.
    Raises UserError if a value is not finite, and for fewer than 100 tokens.
    """
    nll, nll_base, kld = (np.asarray(a, dtype=np.float64) for a in (nll, nll_base, kld))
    if not all(np.isfinite(a).all() for a in (nll, nll_base, kld)):
        raise UserError("the model's output is not finite")
    if len(nll) < 100:
        raise UserError(f"{len(nll)} scored tokens are too few for statistics: at least 100")
    return {
        "kld": _with_quantiles(kld, KLD_QUANTILES),
        "perplexity": _perplexity(nll, nll_base),
        "same_top": _share(np.asarray(same_top, dtype=bool)),
        "delta_p": _delta_p(np.exp(-nll) - np.exp(-nll_base)),
    }


def _with_quantiles(values: np.ndarray, quantiles: dict[str, float]) -> dict[str, float]:
    mean, error = mean_and_error(values)
    found = np.quantile(values, list(quantiles.values()))
    return {"mean": mean, "error": error} | dict(zip(quantiles, map(float, found), strict=True))


def _perplexity(nll: np.ndarray, nll_base: np.ndarray) -> dict[str, float | None]:
    count = len(nll)
    log, log_error = mean_and_error(nll)
    log_base, log_base_error = mean_and_error(nll_base)
    covariance = ((nll * nll_base).sum() / count - log * log_base) / (count - 1)
    value, base = math.exp(log), math.exp(log_base)
    error, base_error = value * log_error, base * log_base_error
    ratio = math.exp(log - log_base)
    ratio_variance = log_error**2 + log_base_error**2 - 2 * covariance
    difference_variance = error**2 + base_error**2 - 2 * value * base * covariance
    log_ratio_error = _root(ratio_variance)
    return {
        "mean": value,
        "error": error,
        "base": base,
        "base_error": base_error,
        "correlation": covariance / (log_error * log_base_error)
        if log_error and log_base_error
        else None,
        "log_ratio": log - log_base,
        "log_ratio_error": log_ratio_error,
        "ratio": ratio,
        "ratio_error": None if log_ratio_error is None else ratio * log_ratio_error,
        "difference": value - base,
        "difference_error": _root(difference_variance),
    }


def _root(variance: float) -> float | None:
    """The square root. None if rounding made the variance of two nearly equal models negative."""
    return math.sqrt(variance) if variance >= 0 else None


def _share(hits: np.ndarray) -> dict[str, float]:
    share = float(hits.mean())
    return {"mean": share, "error": math.sqrt(share * (1 - share) / (len(hits) - 1))}


def _delta_p(delta: np.ndarray) -> dict[str, float | None]:
    square, square_error = mean_and_error(delta * delta)
    rms = math.sqrt(square)
    result = _with_quantiles(delta, DELTA_P_QUANTILES)
    return result | {"rms": rms, "rms_error": 0.5 / rms * square_error if rms else None}

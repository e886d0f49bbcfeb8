"""The statistics of `llama-perplexity --kl-divergence`, from per-token values of any engine.

Definitions as in tools/perplexity/perplexity.cpp, kl_divergence(), of llama.cpp b10605; keys as in
kld_report.py.
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
    """Cut `tokens` (n,) into rows of `context` tokens, int64 (chunks, context).

    `bos`, where the model has one, stands in place of each row's first token. A shorter last row is
    left out; `chunks` limits their number. Raises UserError where there are less than two rows.
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
    """Positions whose output is scored, against the token that follows: a window's second half."""
    return slice(context // 2, context - 1)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error, 0 where there are too few values for one."""
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
    """The statistics of all scored tokens.

    All arrays are (n,): negative log-likelihood of the token under the model and under the
    reference, KL divergence (all in nats), and whether both think the same token the likeliest.
    Raises UserError for values that are not finite, and for less than 100 tokens.
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
    """None where rounding makes the variance of two all but equal models negative."""
    return math.sqrt(variance) if variance >= 0 else None


def _share(hits: np.ndarray) -> dict[str, float]:
    share = float(hits.mean())
    return {"mean": share, "error": math.sqrt(share * (1 - share) / (len(hits) - 1))}


def _delta_p(delta: np.ndarray) -> dict[str, float | None]:
    square, square_error = mean_and_error(delta * delta)
    rms = math.sqrt(square)
    result = _with_quantiles(delta, DELTA_P_QUANTILES)
    return result | {"rms": rms, "rms_error": 0.5 / rms * square_error if rms else None}

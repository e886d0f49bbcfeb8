"""Which candidate of a study is the best, and how sure that is.

Each figure of a candidate was measured piece by piece: a perplexity on chunks of a text, a score on
tasks, a KL divergence on chunks. All candidates had the same pieces. So what chance did is seen by
drawing them again: of each text and each file of tasks as many pieces as there are, with
replacement, the same for all candidates (a paired bootstrap). The share of draws in which the
winner wins again tells how sure the choice is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

DRAWS = 2000
SURE = 0.95  # from this share of draws on a choice is called decided


class Rule(NamedTuple):
    """How candidates are ordered.

    minimise, maximise: names of figures. by: ranks, sum or pareto. weights: of figures, for `sum`.
    """

    minimise: Sequence[str]
    maximise: Sequence[str]
    by: str
    weights: Mapping[str, float] = {}


@dataclass
class Figure:
    """One figure of all candidates, in their order.

    pieces: float64 (candidates, pieces), whose mean is the figure; of a perplexity its logarithm.
    source: the text or the file of tasks: figures of the same source have the same pieces.
    """

    name: str
    source: str
    pieces: np.ndarray

    @property
    def is_logarithm(self) -> bool:
        """Whether the mean of pieces is a perplexity's logarithm."""
        return self.name.startswith("perplexity.")


@dataclass
class Order:
    """Candidates in order.

    order: their indexes, the best first. scores: what they are ordered by, of each candidate in the
    order of the config; the lower the better. ranks: {figure: ranks from 1}; equal ones have their
    mean. front: those that no other beats in every figure.
    """

    order: list[int]
    scores: np.ndarray
    ranks: dict[str, np.ndarray]
    front: list[int]


@dataclass
class Decision:
    """A choice.

    order: indexes of candidates, the best first. second: None if there is one only. share: of the
    draws in which the winner wins. wins: that of each candidate. is_sure: whether it is decided.
    siblings: ids of those that differ from the winner in their seed alone, dropped ones too. lead:
    {figure: (second's value less the winner's, its standard error)}; of a perplexity the relative
    difference.
    """

    order: list[int]
    second: int | None
    share: float
    wins: np.ndarray
    is_sure: bool
    siblings: list[str]
    lead: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def winner(self) -> int:
        """The index of the best candidate."""
        return self.order[0]


def in_order(means: Mapping[str, np.ndarray], rule: Rule) -> Order:
    """Order candidates. means: {figure: float64 (candidates,)}; of a perplexity its logarithm."""
    signed = {name: means[name] for name in rule.minimise}
    signed |= {name: -means[name] for name in rule.maximise}
    ranks = {name: _ranks(values) for name, values in signed.items()}
    mean_rank = np.mean(list(ranks.values()), axis=0)
    matrix = np.array(list(signed.values()))
    better = (matrix[:, :, None] <= matrix[:, None, :]).all(axis=0)
    strictly = (matrix[:, :, None] < matrix[:, None, :]).any(axis=0)
    front = ~(better & strictly).any(axis=0)
    scores = mean_rank
    if rule.by == "sum":
        scores = sum(rule.weights.get(name, 1.0) * values for name, values in signed.items())
    elif rule.by == "pareto":
        scores = np.where(front, mean_rank, mean_rank + matrix.shape[1])
    order = sorted(range(matrix.shape[1]), key=lambda index: (scores[index], index))
    return Order(order, np.asarray(scores), ranks, [int(i) for i in np.flatnonzero(front)])


def decide(figures: Sequence[Figure], rule: Rule, siblings: Callable[[int], list[str]]) -> Decision:
    """Choose a candidate, and say how sure that is.

    figures: those that the rule names. siblings(index): ids of the candidates that differ from one
    in nothing but their seed; whether such a one wins is chance, so where the winner has any, the
    second is within what a seed does. The same figures give the same answer every time.
    """
    means = {figure.name: figure.pieces.mean(axis=1) for figure in figures}
    found = in_order(means, rule)
    count = len(found.order)
    wins = np.zeros(count)
    random = np.random.default_rng(0)
    weights = {}
    for figure in figures:
        if figure.source not in weights:
            pieces = figure.pieces.shape[1]
            weights[figure.source] = (
                random.multinomial(pieces, [1 / pieces] * pieces, DRAWS) / pieces
            )
    drawn = {f.name: weights[f.source] @ f.pieces.T for f in figures}  # (draws, candidates)
    for draw in range(DRAWS):
        again = in_order({name: values[draw] for name, values in drawn.items()}, rule)
        best = again.scores.min()
        tied = np.flatnonzero(np.isclose(again.scores, best, rtol=0, atol=1e-12))
        wins[tied] += 1 / len(tied)
    wins /= DRAWS
    # Of equal scores the one that wins more draws comes first, and then the config's first.
    order = sorted(range(count), key=lambda one: (round(found.scores[one], 9), -wins[one], one))
    winner = order[0]
    if count == 1:
        return Decision(order, None, 1.0, wins, True, [])
    second, others = order[1], siblings(winner)
    lead = {figure.name: _lead(figure, winner, second) for figure in figures}
    # What chance does is not seen in one piece.
    enough = all(figure.pieces.shape[1] > 1 for figure in figures)
    is_sure = enough and bool(wins[winner] >= SURE) and not others
    return Decision(order, second, float(wins[winner]), wins, is_sure, others, lead)


def _lead(figure: Figure, winner: int, second: int) -> tuple[float, float]:
    """The second's figure less the winner's, and the standard error, by the same pieces."""
    apart = figure.pieces[second] - figure.pieces[winner]
    error = float(apart.std(ddof=1) / len(apart) ** 0.5) if len(apart) > 1 else float("nan")
    return float(apart.mean()), error


def survivors(order: Order, keep: int | str) -> list[int]:
    """The indexes of the candidates that stay, in the order of the config.

    keep: a number, or `half` (of an odd number the larger half).
    """
    count = len(order.order)
    stay = (count + 1) // 2 if keep == "half" else min(int(keep), count)
    return sorted(order.order[:stay])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 for the lowest; equal values share the mean of their ranks."""
    from scipy.stats import rankdata

    return rankdata(values)


def values_of(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """The figure of each candidate and its standard error: two arrays float64 (candidates,)."""
    mean = figure.pieces.mean(axis=1)
    count = figure.pieces.shape[1]
    error = (
        figure.pieces.std(axis=1, ddof=1) / count**0.5 if count > 1 else np.full_like(mean, np.nan)
    )
    if figure.is_logarithm:
        return np.exp(mean), np.exp(mean) * error
    return mean, error

"""What charts and tables of a study show: rounds, their figures, what was varied.

A view is of one round: only what was measured on the same pieces is comparable.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib.report.charts import Scale, told_apart
from lib.studies import words
from lib.studies.choice import Figure, values_of
from lib.studies.outcome import Outcome, Round

FAR = 6  # times as far from the winner as three quarters of the candidates: off the scale
NEAR = 1.5  # times the candidates' range: parents that are not further from it stretch the scale
NONE = "–"  # of a candidate without that name


@dataclass
class Column:
    """A figure of all candidates of a round, as a chart shows it; tasks in percent.

    best: index of the winner. errors: standard errors of the differences from it, which was
    measured on the same pieces (of a single candidate that of the figure); NaN if there is none.
    parents: {parent: value}.
    """

    name: str
    values: np.ndarray
    errors: np.ndarray
    parents: dict[str, float]
    best: int

    @property
    def title(self) -> str:
        """The figure with its unit."""
        kind, _, about = self.name.partition(".")
        if words.is_high(self.name):
            return f"{about}, % solved"
        return f"Perplexity on {about}" if kind == "perplexity" else f"KLD on {about}, nats"

    @property
    def better(self) -> str:
        """Which way is better."""
        return "higher is better" if words.is_high(self.name) else "lower is better"

    @property
    def fits(self) -> np.ndarray:
        """Which candidates are not so far from the winner that they would squeeze all others."""
        far = np.abs(self.values - self.values[self.best])
        near = float(np.quantile(far, 0.75))
        return far <= FAR * near if near and len(far) > 4 else far >= 0

    def scale(self, start: float, end: float, only: Sequence[int] | None = None) -> Scale:
        """Its scale: for all candidates but those far off, and for parents that are near.

        only: indexes of the candidates that are shown; None: all.
        """
        shown = [i for i in (range(len(self.values)) if only is None else only) if self.fits[i]]
        values, errors = self.values[shown], np.nan_to_num(self.errors[shown])
        low, high = float((values - errors).min()), float((values + errors).max())
        if not high - low > 1e-9 * abs(high):
            low, high = low - abs(low) / 100 - 1e-6, high + abs(high) / 100 + 1e-6
        wide = NEAR * (high - low)
        beside = [p for p in self.parents.values() if low - wide <= p <= high + wide]
        low, high = min([low, *beside]), max([high, *beside])
        if not words.is_high(self.name) and low > 0 and high / low > 8:
            pad = (high / low) ** 0.06
            return Scale(low / pad, high * pad, start, end, log=True)
        pad = 0.06 * (high - low)
        return Scale(low - pad, high + pad, start, end)


@dataclass
class Parameter:
    """What was varied under one name. values: of each candidate, as text; numbers if all are."""

    name: str
    values: list[str]
    numbers: list[float] | None

    @property
    def distinct(self) -> list[str]:
        """The values, each once: numbers from the lowest, words in the order of the config."""
        found = dict.fromkeys(self.values)
        if self.numbers is None:
            return list(found)
        by_number = dict(zip(self.values, self.numbers, strict=True))
        return sorted(found, key=by_number.__getitem__)


@dataclass
class View:
    """A round as charts show it.

    ids: of its candidates in the order of the config; numbers: their places among all candidates.
    columns: all figures; asked: those that are chosen by. parameters: what has two values at least.
    front: candidates that no other beats. parents: their short names. decided: it is the last.
    """

    round: Round
    ids: list[str]
    numbers: list[int]
    winner: int
    columns: list[Column]
    asked: list[Column]
    parameters: list[Parameter]
    seed: str | None
    front: set[int]
    decided: bool

    @property
    def places(self) -> dict[int, int]:
        """{index of a candidate: its place, from 1}."""
        return {index: place for place, index in enumerate(self.round.order.order, 1)}

    @property
    def grid(self) -> list[Parameter]:
        """What was varied, beside seeds."""
        return [each for each in self.parameters if each.name != self.seed]


def views(outcome: Outcome) -> list[View]:
    """What charts show of each round that was measured."""
    named = short_names(outcome.parents.values())
    numbers = {name: number for number, name in enumerate(outcome.candidates)}
    found = []
    for each in outcome.rounds:
        is_last = outcome.last and each is outcome.rounds[-1]
        best = each.order.order[0]
        columns = []
        for figure in each.figures:
            known = {
                named[outcome.parents[parent]]: values[figure.name][0]
                for parent, values in outcome.parent_values.items()
                if is_last and figure.name in values
            }
            columns.append(_column(figure, best, known))
        asked = (*outcome.rule.minimise, *outcome.rule.maximise)
        found.append(
            View(
                each,
                each.ids,
                [numbers[name] for name in each.ids],
                best,
                columns,
                sorted((c for c in columns if c.name in asked), key=lambda c: asked.index(c.name)),
                _parameters([outcome.candidates[name] for name in each.ids]),
                outcome.seed,
                set(each.order.front),
                is_last,
            )
        )
    return found


def apart(figure: Figure, best: int) -> tuple[np.ndarray, np.ndarray]:
    """Each candidate's pieces less the best's: their mean and its standard error, as Decision.lead.

    Of a perplexity they are those of its logarithm. The error is NaN where there is one piece only.
    """
    return values_of(Figure("", figure.source, figure.pieces - figure.pieces[best]))


def short_names(references: Iterable[str]) -> dict[str, str]:
    """{reference of a model: the last part of it, or all of it if two have the same}."""
    ends = {each: each.rstrip("/").rpartition("/")[2] for each in references}
    last = list(ends.values())
    return {each: end if end and last.count(end) == 1 else each for each, end in ends.items()}


def value_text(value: Any) -> str:
    """A varied value as text."""
    return value if isinstance(value, str) else json.dumps(value)


def _column(figure: Figure, best: int, parents: dict[str, float]) -> Column:
    values, own = values_of(figure)
    _, errors = apart(figure, best)
    if figure.is_logarithm:
        errors = values * errors
    if len(values) == 1:
        errors = own
    factor = 100 if words.is_high(figure.name) else 1
    parents = {name: factor * value for name, value in parents.items()}
    return Column(figure.name, factor * values, factor * errors, parents, best)


def _parameters(rows: Sequence[Mapping[str, Any]]) -> list[Parameter]:
    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [value_text(row[name]) if name in row else NONE for row in rows]
        if len(set(values)) < 2:
            continue
        given = [row.get(name) for row in rows]
        numbers = [
            float(v) for v in given if isinstance(v, int | float) and not isinstance(v, bool)
        ]
        # 1 and 1.0 are two values in one place, and infinity is in none.
        on_axis = len(numbers) == len(given) and all(map(math.isfinite, numbers))
        on_axis = on_axis and len(set(numbers)) == len(set(values))
        found.append(Parameter(name, values, numbers if on_axis else None))
    return found


def unbeaten(x: Column, y: Column) -> list[int]:
    """The candidates that no other beats in two figures."""
    signs = [-1 if words.is_high(each.name) else 1 for each in (x, y)]
    points = [(signs[0] * a, signs[1] * b) for a, b in zip(x.values, y.values, strict=True)]
    return [
        index
        for index, (a, b) in enumerate(points)
        if not any(c <= a and d <= b and (c < a or d < b) for c, d in points)
    ]


@dataclass
class Cell:
    """A cell of a heat map. shade: how strong its colour is in percent; None without a candidate.

    numbers: of its candidates.
    """

    text: str
    shade: int | None
    numbers: list[int]
    winner: bool


@dataclass
class Heat:
    """A heat map of a figure. rows: [(value, its cells)]. parents: [(name, cell)]."""

    column: Column
    across: Parameter
    down: Parameter
    labels: dict[str, str]
    rows: list[tuple[str, list[Cell]]]
    parents: list[tuple[str, Cell]]


def heat(view: View, column: Column) -> Heat:
    """A figure by the two names that were varied; of several seeds the mean."""
    first, second = view.grid
    down, across = (
        (first, second) if len(first.distinct) >= len(second.distinct) else (second, first)
    )
    cells: dict[tuple[str, str], list[int]] = {}
    for index, key in enumerate(zip(down.values, across.values, strict=True)):
        cells.setdefault(key, []).append(index)
    means = {key: float(np.mean(column.values[indexes])) for key, indexes in cells.items()}
    fitting = column.values[column.fits]
    best = float(fitting.max() if words.is_high(column.name) else fitting.min())
    limit = float(np.ptp(fitting)) or 1.0
    digits = digits_of(column.values, column.errors)

    def cell(value: float, indexes: list[int]) -> Cell:
        worse = best - value if words.is_high(column.name) else value - best
        shade = round(58 * (1 - min(max(worse / limit, 0.0), 1.0)))
        numbers = [view.numbers[index] for index in indexes]
        return Cell(f"{value:,.{digits}f}", shade, numbers, view.winner in indexes)

    rows = []
    for row in down.distinct:
        keys = [(row, word) for word in across.distinct]
        empty = Cell("", None, [], False)
        rows.append((row, [cell(means[k], cells[k]) if k in cells else empty for k in keys]))
    parents = [(name, cell(value, [])) for name, value in column.parents.items()]
    labels = (
        told_apart(list(column.parents), 22)
        | told_apart(down.distinct, 22)
        | told_apart(across.distinct, 14)
    )
    return Heat(column, across, down, labels, rows, parents)


def digits_of(values: Iterable[float], errors: Iterable[float]) -> int:
    """Decimals for a column: to the first digit of its usual error, or to three digits."""
    known = sorted(error for error in errors if error > 0)
    largest = max(map(abs, values), default=0.0)
    usual = known[len(known) // 2] if known else largest / 100 or 1.0
    return min(6, max(0, -math.floor(math.log10(usual))))

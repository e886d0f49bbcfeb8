"""The charts of a study: one round of it, each figure against what was varied, the front.

A chart has all that was measured on the same pieces, and nothing else: figures of different rounds
are not comparable. What belongs to a candidate has its number (data-c), by which the page's script
finds it.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from lib.report.charts import (
    SMALL,
    WIDE,
    Drawing,
    Labels,
    Scale,
    Words,
    short,
    spread,
    told_apart,
)
from lib.studies import words
from lib.studies.choice import Figure, values_of
from lib.studies.outcome import Outcome, Round

MANY = 40  # candidates from which on error bars are paler and names are left out
ROWS = 30  # of the chart of candidates in order
FAR = 6  # times as far from the winner as three quarters of the candidates: off the scale
NEAR = 1.5  # times the candidates' range: parents that are not further from it stretch the scale
WIDEST = 44.0  # pixels that the candidates above one value take
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
        is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in given)
        found.append(Parameter(name, values, [float(v) for v in given] if is_number else None))
    return found


# One figure against one name -------------------------------------------------------------------


def against(view: View, column: Column, parameter: Parameter) -> Drawing:
    """A figure against what was varied under a name: a dot for each candidate."""
    is_words = parameter.numbers is None or parameter.name == view.seed
    distinct = parameter.distinct
    width = 300 if len(distinct) <= 12 or not is_words else 940
    right = width - _beside(column)
    labels = told_apart(distinct, 14)
    longest = max(len(short(label, 14)) for label in labels.values())
    step = (right - 48) / len(distinct)
    turned = is_words and longest * WIDE * SMALL > step - 4
    most = max(map(parameter.values.count, distinct))
    named = step >= SMALL + 2 or not is_words
    low = 190 + (longest * WIDE * SMALL * 0.9 - 4 if turned and named else 0)
    drawing = Drawing(width, low + 42, f"{column.title} against {parameter.name}")
    scale = column.scale(190, 12)
    _upright(drawing, scale, 46, right, 30)
    if is_words:
        line = Words(distinct, 48, right)
        places = [line(word) for word in parameter.values]
        room = line.step
        ticks = [(line(word), labels[word]) for word in distinct] if named else []
    else:
        edge = 10 + min(8.0 * most, WIDEST) / 2
        line = _numbers(parameter.numbers, 46 + edge, right - edge)
        places = [line(number) for number in parameter.numbers]
        apart_ = [b - a for a, b in itertools.pairwise(sorted(set(places)))]
        room = min(apart_) if apart_ else 40
        ticks = _number_ticks(line, parameter)
    for place, text in ticks:
        if turned:
            turn = f"rotate(-64 {place:.1f} 204)"
            drawing.write(place, 204.0, text, 14, class_="end", transform=turn)
        else:
            drawing.write(place, 206.0, text, 14, class_="middle")
    drawing.write((46 + right) / 2, low + 34, parameter.name, 40, class_="middle strong")
    _parent_lines(drawing, column, scale, 46, right)
    _reference(drawing, scale(column.values[view.winner]), 46, right)
    together: dict[float, list[int]] = {}
    for index, place in enumerate(places):
        together.setdefault(place, []).append(index)
    for place, members in together.items():
        wide = min(0.64 * room, 8.0 * len(members), WIDEST)
        if len(together) < len(places):
            mean, half = (
                float(np.mean(column.values[members])),
                max(min(0.4 * room, wide / 2 + 5), 4),
            )
            if scale.has(mean):
                y = scale(mean)
                drawing.line(place - half, y, place + half, y, class_="mean")
        for number, index in enumerate(members):
            x = place + wide * ((number + 0.5) / len(members) - 0.5)
            _dot(drawing, view, index, x, scale(column.values[index]), y_bar=(column, scale))
    return drawing


def _beside(column: Column) -> float:
    """The pixels that the names of parents take at the right of a chart."""
    labels = told_apart(list(column.parents), 10).values()
    longest = max((len(short(label, 10)) for label in labels), default=0)
    return 8 + WIDE * SMALL * (longest + 0.8) if longest else 10


def _numbers(values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values), max(values)
    return Scale(low, high, start, end, low > 0 and high / low >= 50)


def _number_ticks(line: Scale, parameter: Parameter) -> list[tuple[float, str]]:
    """The values themselves, or round numbers if there is no room for all."""
    by_text = dict(zip(parameter.values, parameter.numbers, strict=True))
    ticks = [(line(by_text[text]), text) for text in parameter.distinct]

    def fits(some: list[tuple[float, str]]) -> bool:
        return all(
            b - a >= (len(s) + len(t)) / 2 * WIDE * SMALL + 5
            for (a, s), (b, t) in itertools.pairwise(some)
        )

    if fits(ticks):
        return ticks
    # Every second of them, or third, as long as they are the values of a grid.
    few = next((ticks[::step] for step in (2, 3, 4) if fits(ticks[::step])), [])
    return few if len(ticks) <= 12 and few else line.ticks(44)


def _upright(drawing: Drawing, scale: Scale, left: float, right: float, gap: float) -> None:
    """The grid and the ticks of a scale that goes up."""
    for place, text in scale.ticks(gap):
        drawing.line(left, place, right, place, class_="grid")
        drawing.write(left - 5, place + 4, text, class_="end")
    drawing.line(left, scale.start, right, scale.start, class_="axis")


def _reference(drawing: Drawing, place: float, left: float, right: float) -> None:
    drawing.line(left, place, right, place, class_="ref")


def _parent_lines(
    drawing: Drawing, column: Column, scale: Scale, left: float, right: float
) -> None:
    """A line for each parent, its name at the right."""
    names = list(column.parents)
    places = [scale(column.parents[name]) for name in names]
    labels = spread(places, SMALL + 1.0, scale.end, scale.start)
    named = told_apart(names, 10)
    for name, place, at in zip(names, places, labels, strict=True):
        value = column.parents[name]
        if scale.has(value):
            drawing.line(left, place, right, place, class_="parent")
        arrow = "" if scale.has(value) else "↑" if place < scale.start - 1 else "↓"
        shown = drawing.write(
            right + 4, at + 4, f"{arrow}{short(named[name], 10)}", class_="parent"
        )
        drawing.add("title", shown, f"{name}: {value:.5g}")


def _dot(
    drawing: Drawing,
    view: View,
    index: int,
    x: float,
    y: float,
    x_bar: tuple[Column, Scale] | None = None,
    y_bar: tuple[Column, Scale] | None = None,
) -> Element:
    """A candidate with its error bars; a triangle where it is off the scale."""
    kinds = ["dot", "on-front" if index in view.front else "beaten"]
    kinds += ["winner"] * (index == view.winner) + ["many"] * (len(view.ids) > MANY)
    group = drawing.add("g", class_=" ".join(kinds), data_c=view.numbers[index])
    is_off = False
    for bar, is_x in ((x_bar, True), (y_bar, False)):
        if bar is None:
            continue
        column, scale = bar
        value, error = float(column.values[index]), float(column.errors[index])
        if not scale.has(value):
            is_off = True
        elif error > 0:
            ends = scale(value - error), scale(value + error)
            if is_x:
                drawing.line(ends[0], y, ends[1], y, inside=group)
            else:
                drawing.line(x, ends[0], x, ends[1], inside=group)
    radius = (5 if index == view.winner else 3.6) if len(view.ids) <= MANY else 3.0
    if is_off:
        drawing.add("path", group, d=f"M{x:.1f} {y - 5:.1f}l5 8h-10z")
    elif index == view.winner:
        drawing.add("path", group, d=_diamond(x, y, radius + 1.2))
    else:
        drawing.add("circle", group, cx=x, cy=y, r=radius)
    return group


def _diamond(x: float, y: float, r: float) -> str:
    return f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"


# Two figures -----------------------------------------------------------------------------------


def front(view: View, x: Column, y: Column, width: int, height: int, top: float = 14.0) -> Drawing:
    """One figure against another, with the candidates that no other beats in both on a line.

    top: pixels to leave for a title.
    """
    drawing = Drawing(width, height, f"{y.title} against {x.title}")
    right, low, gap = width - 16.0, height - 44.0, 30 if height < 400 else 44
    up = y.scale(low, top + 8)
    left = 12 + WIDE * SMALL * max(len(text) for _, text in up.ticks(gap))
    across = x.scale(left + 8, right)
    _upright(drawing, up, left, right, gap)
    for place, text in across.ticks(64):
        drawing.line(place, top, place, low, class_="grid")
        drawing.write(place, low + 16, text, class_="middle")
    most = int((width - 70) / (WIDE * SMALL))
    drawing.write(right, height - 8.0, f"{x.title}, {x.better}", most, class_="end")
    drawing.write(left + 6, top + 4, f"{y.title}, {y.better}", most, class_="halo")
    room = left + 2, 2.0, right + 12, low - 2
    labels = Labels(drawing, room, [(left, top - 8, left + 6 * len(y.title + y.better), top + 8)])
    named = told_apart(list(x.parents), shown := 18 if width < 500 else 36)
    at = {i: (across(x.values[i]), up(y.values[i])) for i in range(len(view.ids))}
    line = sorted(unbeaten(x, y), key=lambda i: at[i])
    if len(line) > 1:
        path = " ".join(f"{at[i][0]:.1f},{at[i][1]:.1f}" for i in line)
        drawing.add("polyline", class_="front-line", points=path)
    # The best are drawn last, so that nothing covers them.
    for index in sorted(at, key=lambda i: -view.places[i]):
        _dot(drawing, view, index, *at[index], x_bar=(x, across), y_bar=(y, up))
        labels.take(*at[index], 5)
        if len(at) <= MANY:
            labels.taken += _bars(x, y, index, across, up)
    parents = {}
    for name in sorted(x.parents.keys() & y.parents.keys()):
        parents[name] = across(x.parents[name]), up(y.parents[name])
    for place in parents.values():
        drawing.add("path", class_="parent", d=_diamond(*place, 5.5))
        labels.take(*place, 6)
    where = at[view.winner]
    labels.place(*where, short(view.ids[view.winner], shown), must=True, class_="halo strong")
    for name, place in parents.items():
        arrow = "" if across.has(x.parents[name]) and up.has(y.parents[name]) else " ↗"
        labels.place(*place, short(named[name], shown) + arrow, must=True, class_="halo parent")
    for index in line if width >= 500 else []:
        if index != view.winner:
            labels.place(*at[index], short(view.ids[index], shown), class_="halo")
    return drawing


def _bars(
    x: Column, y: Column, index: int, across: Scale, up: Scale
) -> list[tuple[float, float, float, float]]:
    """Where a candidate's error bars are, for labels to keep away from."""
    ends = []
    for column, scale in ((x, across), (y, up)):
        value, error = float(column.values[index]), float(np.nan_to_num(column.errors[index]))
        ends.append((scale(value - error), scale(value), scale(value + error)))
    (left, middle, right), (low, centre, high) = ends
    return [(left, centre - 1, right, centre + 1), (middle - 1, high, middle + 1, low)]


def unbeaten(x: Column, y: Column) -> list[int]:
    """The candidates that no other beats in two figures."""
    signs = [-1 if words.is_high(each.name) else 1 for each in (x, y)]
    points = [(signs[0] * a, signs[1] * b) for a, b in zip(x.values, y.values, strict=True)]
    return [
        index
        for index, (a, b) in enumerate(points)
        if not any(c <= a and d <= b and (c < a or d < b) for c, d in points)
    ]


# One figure ------------------------------------------------------------------------------------


def in_order(view: View, column: Column, width: int, top: float = 12.0) -> Drawing:
    """The candidates in order, the best first, then the parents: a figure with its error."""
    order = view.round.order.order
    shown, more = order[:ROWS], len(order) - ROWS
    names = [view.ids[index] for index in shown]
    most = 18 if width < 500 else 40
    left = 14 + WIDE * SMALL * max(len(short(n, most)) for n in (*names, *column.parents))
    count = len(shown) + len(column.parents) + (more > 0)
    low = top + 18.0 * count + 8
    drawing = Drawing(width, low + 42, f"{column.title} of the candidates in order")
    right = width - 16.0
    scale = column.scale(left + 8, right, shown)
    for place, text in scale.ticks(64 if width > 500 else 50):
        drawing.line(place, top, place, low, class_="grid")
        drawing.write(place, low + 16, text, class_="middle")
    drawing.line(left, low, right, low, class_="axis")
    said = f"{column.title}, {column.better}"
    drawing.write(right, low + 36, said, int((width - 20) / (WIDE * SMALL)), class_="end")
    best = scale(column.values[view.winner])
    drawing.line(best, top, best, low, class_="ref")
    ys = [top + 18 * (row + 0.5) + 4 for row in range(count)]
    beside = list(zip(column.parents.items(), ys[len(shown) + (more > 0) :], strict=True))
    for (_, value), y in beside:
        if scale.has(value):
            drawing.line(scale(value), top, scale(value), y, class_="parent")
    for index, y in zip(shown, ys, strict=False):
        bold = "end strong" if index == view.winner else "end"
        drawing.write(left - 6, y + 4, view.ids[index], most, class_=bold)
        _dot(drawing, view, index, scale(column.values[index]), y, x_bar=(column, scale))
    if more > 0:
        text = f"and {more} more, the last {number_of(column, order[-1])}"
        drawing.write(left + 8, ys[len(shown)] + 4, text)
    for (name, value), y in beside:
        drawing.write(left - 6, y + 4, name, most, class_="end parent")
        drawing.add("path", class_="parent", d=_diamond(scale(value), y, 5.5))
        if not scale.has(value):
            is_right = value > scale.high
            x, where = scale(value) + (-10 if is_right else 10), "end " if is_right else ""
            drawing.write(x, y + 4, f"{value:.4g}", class_=f"{where}halo parent")
    return drawing


def number_of(column: Column, index: int) -> str:
    """A candidate's value in few digits."""
    return f"{column.values[index]:.4g}"


# More than two names ---------------------------------------------------------------------------


def parallel(view: View) -> Drawing:
    """A line for each candidate through axes of what was varied and of what came of it.

    The figures' axes have their better end at the top.
    """
    columns, axes = view.asked or view.columns, len(view.parameters)
    total = axes + len(columns)
    top, low, left = 48.0, 310.0, 110.0
    gap = max(118, (960 - left - 80) / max(total - 1, 1))
    drawing = Drawing(left + gap * (total - 1) + 80, 330, "What was varied, and what came of it")
    places: dict[int, list[float]] = {index: [] for index in range(len(view.ids))}
    ticks: list[tuple[int, float, str]] = []
    for number, parameter in enumerate(view.parameters):
        for index, place in enumerate(_along(parameter, view, low, top)):
            places[index].append(place)
        ticks += [(number, *tick) for tick in _axis_ticks(parameter, view, low, top)]
    scales = []
    for number, column in enumerate(columns, axes):
        ends = (top, low) if not words.is_high(column.name) else (low, top)
        scale = column.scale(*ends)
        scales.append((number, column, scale))
        for index, value in enumerate(column.values):
            places[index].append(scale(value))
        ticks += [(number, *tick) for tick in scale.ticks(40)]
    xs = [left + gap * number for number in range(total)]
    for x in xs:
        drawing.line(x, top, x, low, class_="axis")
    last, power = max(len(view.ids) - 1, 1), 1 if len(view.ids) <= MANY else 3
    for index in sorted(places, key=lambda i: -view.places[i]):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, places[index], strict=True))
        is_best = index == view.winner
        place = (view.places[index] - 1) / last
        opaque = 1.0 if is_best else round(0.08 + 0.8 * (1 - place) ** power, 2)
        drawing.add(
            "polyline",
            class_="path winner" if is_best else "path",
            data_c=view.numbers[index],
            points=points,
            opacity=f"{opaque:g}",
        )
    for number, column, scale in scales:
        near = {name: v for name, v in column.parents.items() if scale.has(v)}
        named = told_apart(list(column.parents), 9)
        at = spread([scale(v) for v in near.values()], SMALL + 1.0, top, low)
        for (name, value), y in zip(near.items(), at, strict=True):
            place, x = scale(value), xs[number]
            drawing.line(x - 5, place, x + 9, place, class_="parent")
            drawing.write(x + 12, y + 4, named[name], 9, class_="halo parent")
    for number, place, text in ticks:
        drawing.write(xs[number] - 5, place + 4, text, 15, class_="halo end")
    for number, x in enumerate(xs):
        if number < axes:
            drawing.write(x, top - 14, view.parameters[number].name, 16, class_="middle strong")
        else:
            kind, _, about = columns[number - axes].name.partition(".")
            kind = {"tasks": "% solved", "kld": "KLD, nats"}.get(kind, "Perplexity")
            drawing.write(x, top - 28, kind, class_="middle strong")
            drawing.write(x, top - 14, about, 16, class_="middle strong")
    return drawing


def _along(parameter: Parameter, view: View, low: float, top: float) -> Iterator[float]:
    """Yield where each candidate crosses a parameter's axis; those of one word side by side."""
    if parameter.numbers is not None and parameter.name != view.seed:
        line = _numbers(parameter.numbers, low, top)
        yield from map(line, parameter.numbers)
        return
    line = Words(parameter.distinct, top, low)
    together = {word: parameter.values.count(word) for word in parameter.distinct}
    seen = dict.fromkeys(together, 0)
    for word in parameter.values:
        wide = min(0.5 * line.step, 4.0 * together[word])
        yield line(word) + wide * ((seen[word] + 0.5) / together[word] - 0.5)
        seen[word] += 1


def _axis_ticks(
    parameter: Parameter, view: View, low: float, top: float
) -> list[tuple[float, str]]:
    if parameter.numbers is not None and parameter.name != view.seed:
        line = _numbers(parameter.numbers, low, top)
        by_text = dict(zip(parameter.values, parameter.numbers, strict=True))
        ticks = [(line(by_text[text]), text) for text in parameter.distinct]
        fits = all(abs(a - b) >= SMALL + 2 for (a, _), (b, _) in itertools.pairwise(ticks))
        return ticks if fits else line.ticks(30)
    line = Words(parameter.distinct, top, low)
    step, labels = max(1, math.ceil((SMALL + 2) / line.step)), told_apart(parameter.distinct, 15)
    return [(line(word), labels[word]) for word in parameter.distinct[::step]]


# Two names -------------------------------------------------------------------------------------


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
    digits = _digits(column)

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


def _digits(column: Column) -> int:
    """Decimals for all values of a column: by the errors of their differences, or their range."""
    errors = [error for error in column.errors if error > 0]
    wide = float(np.median(errors)) if errors else float(np.ptp(column.values)) / 20
    if not wide:
        wide = float(np.abs(column.values).max()) / 1000 or 1.0
    return min(6, max(0, 1 - math.floor(math.log10(wide))))

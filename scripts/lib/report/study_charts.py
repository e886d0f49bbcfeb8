"""The charts of a study: each figure against what was varied, the front, candidates in order.

What belongs to a candidate has its number (data-c), by which the page's script finds it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
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
from lib.report.study_views import Column, Parameter, View, unbeaten
from lib.studies import words

MANY = 40  # candidates from which on error bars are paler and names are left out
ROWS = 30  # of the chart of candidates in order
WIDEST = 44.0  # pixels that the candidates above one value take


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
        room = min(b - a for a, b in itertools.pairwise(sorted(set(places))))
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
            mean = float(np.mean(column.values[members]))
            half = max(min(0.4 * room, wide / 2 + 5), 4)
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
        for (x1, y1), (x2, y2) in itertools.pairwise(at[i] for i in line):
            for part in np.linspace(0, 1, 2 + int(math.hypot(x2 - x1, y2 - y1) / 6)):
                labels.take(x1 + part * (x2 - x1), y1 + part * (y2 - y1), 1)
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
        arrows = _beyond(x.parents[name], across, "←→") + _beyond(y.parents[name], up, "↓↑")
        label = f"{short(named[name], shown)} {arrows}".rstrip()
        labels.place(*place, label, must=True, class_="halo parent")
    for index in line if width >= 500 else []:
        if index != view.winner:
            labels.place(*at[index], short(view.ids[index], shown), class_="halo")
    return drawing


def _beyond(value: float, scale: Scale, arrows: str) -> str:
    """The arrow to where a value is off a scale; arrows: to its low and to its high end."""
    return arrows[0] if value < scale.low else arrows[1] if value > scale.high else ""


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

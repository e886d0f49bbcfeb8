"""Heat maps of task vectors as SVG: model by model, and layer by kind of tensor for each pair.

Each map is an <svg> of one width, so that a page can set them as wide as the screen allows; `sheet`
puts them together into a file of its own. Blue is agreement, orange the contrary, the stronger the
more; dark colours follow the reader's screen.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from xml.etree import ElementTree

from lib.report.task_vectors import BY_CHANCE, Cell, Table, decimal, large, percent, short_names

WIDTH, GAP = 430, 24  # pixels, of a map and between maps
ROW = 15  # height of a cell in a map of layers
NAMES = 152  # width of what stands before the cells
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE = f"""
.similarity-plot text {{ font-family: {FONT}; font-size: 11px; fill: #1b1f24 }}
.similarity-plot .muted {{ fill: #59636e }}
.similarity-plot .head {{ font-weight: 600; font-size: 12px }}
.similarity-plot .title {{ font-weight: 700; font-size: 15px }}
.similarity-plot .end {{ text-anchor: end }}
.similarity-plot .middle {{ text-anchor: middle }}
.similarity-plot .paper {{ fill: #ffffff }}
.similarity-plot .none {{ fill: #eceff2 }}
.similarity-plot .agree {{ fill: #2f6fdb }}
.similarity-plot .against {{ fill: #e07b16 }}
@media screen and (prefers-color-scheme: dark) {{
.similarity-plot text {{ fill: #e9ecef }}
.similarity-plot .muted {{ fill: #9ba6b2 }}
.similarity-plot .paper {{ fill: #171b20 }}
.similarity-plot .none {{ fill: #22282e }}
}}
"""
STRONGEST = 0.85  # opacity of the strongest colour: what is written on it stays legible
OUTSIDE = 8  # kinds in no layer that a map has room for
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Figure(NamedTuple):
    """A figure that is drawn. middle: where it says nothing; sign: 1 if more of it is agreement."""

    title: str
    of: Callable[[Any], float | None]
    text: Callable[[float | None], str]
    middle: float
    sign: int


COSINE = Figure("Cosine similarity", lambda found: found.cosine, decimal, 0.0, 1)
CONFLICT = Figure("Conflicting signs", lambda found: found.conflict, percent, BY_CHANCE, -1)
FIGURES = (COSINE, CONFLICT)


class Maps(NamedTuple):
    """All maps of a table. matrices: one for each figure. pairs: {pair: one for each figure}."""

    matrices: list[ElementTree.Element]
    pairs: dict[tuple[str, str], list[ElementTree.Element]]


def draw(table: Table) -> Maps:
    """Draw the maps. All of one figure have one scale of colours; small tensors do not set it."""
    cells = {line.pair: table.cells(line.pair) for line in table.all}
    counted = [
        cell
        for found in cells.values()
        for cell in large(cell for (_, layer), cell in found.items() if layer is not None)
    ]
    spans = {figure: _span(figure, [*table.all, *counted]) for figure in FIGURES}
    matrices = [_matrix(table, figure, spans[figure]) for figure in FIGURES]
    if not table.layers:
        return Maps(matrices, {})
    pairs = {
        pair: [_layers(table, found, figure, spans[figure]) for figure in FIGURES]
        for pair, found in cells.items()
    }
    return Maps(matrices, pairs)


def svg(element: ElementTree.Element) -> str:
    """The text of an <svg>."""
    return ElementTree.tostring(element, encoding="unicode")


def sheet(title: str, about: str, table: Table, maps: Maps) -> str:
    """All maps in one file. about: a line below the title."""
    width = 2 * WIDTH + 3 * GAP
    whole = _open(width, 0)
    ElementTree.SubElement(whole, "style").text = STYLE
    ElementTree.SubElement(whole, "title").text = title
    paper = _add(whole, "rect", "paper", x=0, y=0)
    _text(whole, GAP, 32, _short(title, 80), "title")
    _text(whole, GAP, 52, _short(about, 130), "muted")
    y = 72 + _beside(whole, 72, maps.matrices)
    names = short_names(table.models)
    for line in table.all:
        if line.pair not in maps.pairs:
            continue
        a, b = (f"{letter(table, name)}  {names[name]}" for name in line.pair)
        _text(whole, GAP, y + 14, _short(f"{a}   and   {b}", 110), "head")
        y += 24 + _beside(whole, y + 24, maps.pairs[line.pair])
    for element in (whole, paper):
        element.attrib |= {"width": str(width), "height": f"{y:g}"}
    whole.set("viewBox", f"0 0 {width} {y:g}")
    return svg(whole) + "\n"


def letter(table: Table, model: str) -> str:
    """The letter by which a model is called where there is no room for its name."""
    return LETTERS[table.models.index(model) % len(LETTERS)]


def _beside(whole: ElementTree.Element, y: float, maps: list[ElementTree.Element]) -> float:
    """Put maps beside each other; the height that they take."""
    heights = []
    for number, found in enumerate(maps):
        _, _, width, height = found.get("viewBox").split()
        place = {"x": GAP + number * (WIDTH + GAP), "y": y, "width": width, "height": height}
        inner = ElementTree.SubElement(whole, "svg", {key: f"{v}" for key, v in place.items()})
        inner.extend(list(found))
        heights.append(float(height))
    return max(heights) + GAP


def _matrix(table: Table, figure: Figure, span: float) -> ElementTree.Element:
    """A figure of all pairs, model by model."""
    count, names = len(table.models), short_names(table.models)
    side = min(56.0, (WIDTH - NAMES) / count)
    high = min(34.0, side)
    root = _open(WIDTH, 62 + high * count, f"{figure.title}, model by model")
    _head(root, figure, span)
    values = {line.pair: figure.of(line) for line in table.all}
    for row, name in enumerate(table.models):
        y = 56 + row * high
        _text(root, 0, y + high / 2 + 4, f"{letter(table, name)}  {_short(names[name], 22)}")
        _text(root, NAMES + (row + 0.5) * side, 50, letter(table, name), "muted middle")
        for column, other in enumerate(table.models):
            x = NAMES + column * side
            value = values.get((name, other), values.get((other, name)))
            told = f"{names[name]} and {names[other]}: {figure.text(value)}"
            _cell(root, (x, y, side - 2, high - 2), None if row == column else value, figure, span)
            if row != column:
                root[-1][0].text = told
                middle = x + side / 2 - 1, y + high / 2 + 3
                _text(root, *middle, figure.text(value), "middle")
    return root


def _layers(
    table: Table, cells: dict[tuple[str, int | None], Cell], figure: Figure, span: float
) -> ElementTree.Element:
    """A figure of one pair: a row for each kind of tensor, a column for each layer."""
    outside = [kind for kind in table.outside if (kind, None) in cells][:OUTSIDE]
    below = 34 + ROW * len(table.kinds)
    height = below + (8 + ROW * len(outside) if outside else 0) + 4
    root = _open(WIDTH, height, f"{figure.title}, layer by layer")
    _text(root, 0, 14, figure.title, "muted")
    wide = (WIDTH - NAMES) / len(table.layers)
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if n * wide >= 22 or n == 1000)
    for column, layer in enumerate(table.layers):
        if layer % every == 0:
            x = NAMES + (column + 0.5) * wide
            _text(root, x, 28, str(layer), "muted middle")
    for row, kind in enumerate(table.kinds):
        y = 34 + row * ROW
        _text(root, NAMES - 6, y + 11, _short(kind, 27), "end")
        for column, layer in enumerate(table.layers):
            if (found := cells.get((kind, layer))) is not None:
                x, value = NAMES + column * wide, figure.of(found)
                gap = 1 if wide >= 5 else 0.25
                _cell(root, (x, y, wide - gap, ROW - 1), value, figure, span)
                root[-1][0].text = f"{kind}, layer {layer}: {figure.text(value)}"
    for row, kind in enumerate(outside):
        y, value = below + 8 + row * ROW, figure.of(cells[kind, None])
        _text(root, NAMES - 6, y + 11, _short(kind, 27), "end")
        _cell(root, (NAMES, y, 34, ROW - 1), value, figure, span)
        root[-1][0].text = f"{kind}: {figure.text(value)}"
        _text(root, NAMES + 40, y + 11, figure.text(value), "muted")
    return root


def _head(root: ElementTree.Element, figure: Figure, span: float) -> None:
    """The title of a figure, and what its colours mean."""
    _text(root, 0, 14, figure.title, "head")
    steps, side = 9, 12
    start = WIDTH - steps * side - 44
    for step in range(steps):
        value = figure.middle + span * (2 * step / (steps - 1) - 1)
        _cell(root, (start + step * side, 5, side, 10), value, figure, span)
        root[-1].remove(root[-1][0])
    ends = (figure.middle - span, figure.middle + span)
    for value, x, kind in ((ends[0], start - 5, "muted end"), (ends[1], WIDTH - 40, "muted")):
        _text(root, x, 14, figure.text(round(value, 6)), kind)


def _cell(
    root: ElementTree.Element,
    box: tuple[float, float, float, float],
    value: float | None,
    figure: Figure,
    span: float,
) -> None:
    """A cell in the colour of a value, with an empty <title>. box: x, y, width, height."""
    x, y, width, height = box
    kind, extra = "none", {}
    if value is not None:
        away = (value - figure.middle) * figure.sign / span
        kind = "agree" if away >= 0 else "against"
        extra = {"fill-opacity": f"{STRONGEST * min(1.0, abs(away)):.3g}"}
    drawn = _add(root, "rect", kind, x=x, y=y, width=width, height=height)
    drawn.attrib |= extra
    ElementTree.SubElement(drawn, "title")


def _span(figure: Figure, found: Iterable[Any]) -> float:
    """How far from its middle a figure gets, rounded up to one digit."""
    values = [figure.of(each) for each in found]
    most = max((abs(value - figure.middle) for value in values if value is not None), default=0)
    if most < 0.01:
        return 0.01
    power = 10 ** math.floor(math.log10(most))
    return min(1.0 - figure.middle, math.ceil(round(most / power, 6)) * power)


def _open(width: float, height: float, says: str = "") -> ElementTree.Element:
    attributes = {"xmlns": "http://www.w3.org/2000/svg", "class": "similarity-plot"}
    attributes["viewBox"] = f"0 0 {width:g} {height:g}"
    if says:
        attributes |= {"role": "img", "aria-label": says}
    return ElementTree.Element("svg", attributes)


def _add(root: ElementTree.Element, tag: str, kind: str, **numbers: float) -> ElementTree.Element:
    attributes = {key: f"{round(value, 2):g}" for key, value in numbers.items()}
    return ElementTree.SubElement(root, tag, attributes | ({"class": kind} if kind else {}))


def _text(root: ElementTree.Element, x: float, y: float, text: str, kind: str = "") -> None:
    _add(root, "text", kind, x=x, y=y).text = text


def _short(text: str, most: int) -> str:
    """Text of at most `most` characters; the end of a name tells more than its beginning."""
    return text if len(text) <= most else f"…{text[-most + 1 :]}"

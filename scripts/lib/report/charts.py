"""What charts of a page are drawn with: scales, ticks, labels and SVG elements.

The text stays text, colours are CSS variables of the page (`style` gives them to a file of its
own), and equal figures give equal bytes.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SMALL = 11  # pixels, the size of text in a chart
WIDE = 0.61  # of its size, about what a letter takes
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#59636e",
    "line": "#d9dee3",
    "soft": "#eceff2",
    "dot": "#5b7fb4",
    "front": "#1f4f9e",
    "win": "#c2410c",
    "parent": "#0f766e",
}
DARK = {
    "paper": "#171b20",
    "ink": "#e9ecef",
    "muted": "#9ba6b2",
    "line": "#3a424b",
    "soft": "#252b32",
    "dot": "#7f9dc9",
    "front": "#a9c8ff",
    "win": "#ff9a5c",
    "parent": "#5fd0c3",
}
STYLE = """\
.chart { display: block; width: 100%; height: auto; overflow: visible }
.chart text { font: FONT; fill: var(--muted) }
.chart .title { font-size: 17px; font-weight: 650; fill: var(--ink) }
.chart .middle { text-anchor: middle }
.chart .end { text-anchor: end }
.chart .grid { stroke: var(--soft) }
.chart .leader { stroke: var(--muted); stroke-width: .7 }
.chart .axis { stroke: var(--line) }
.chart .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 3px }
.chart .halo { stroke-linejoin: round }
.chart .strong { font-weight: 650; fill: var(--ink) }
.chart .ref { stroke: var(--win); stroke-opacity: .45 }
.chart .mean { stroke: var(--ink); stroke-opacity: .7; stroke-width: 1.6 }
.chart .front-line { fill: none; stroke: var(--front); stroke-opacity: .6; stroke-width: 1.4 }
.chart .parent { stroke: var(--parent); fill: none }
.chart line.parent { stroke-dasharray: 4 3 }
.chart path.parent { fill: var(--paper); stroke-width: 1.8 }
.chart text.parent { fill: var(--parent); stroke: none }
.chart text.halo.parent { stroke: var(--paper) }
.chart .dot { fill: var(--dot); stroke: var(--dot) }
.chart .dot line { stroke-opacity: .55 }
.chart .dot.many line { stroke-opacity: .35 }
.chart .dot.beaten :not(line) { fill-opacity: .7; stroke: none }
.chart .dot.on-front { fill: var(--front); stroke: var(--front) }
.chart .dot.winner { fill: var(--win); stroke: var(--win) }
.chart .path { fill: none; stroke: var(--dot); stroke-width: 1.2 }
.chart .path.winner { stroke: var(--win); stroke-width: 2.4 }
"""


def style(standalone: bool = False) -> str:
    """The style sheet of charts. standalone: of a file of its own, with the colours in it."""
    sheet = STYLE.replace("font: FONT", f"font: {SMALL}px {FONT}")
    if not standalone:
        return sheet
    sheet += f".chart .sheet {{ fill: {_var('paper')} }}\n"
    colours = [line for line in sheet.splitlines() if "var(" in line]
    dark = "\n".join(_coloured(line, DARK) for line in colours)
    return (
        _coloured(sheet, LIGHT) + f"@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    )


def variables(colours: Mapping[str, str]) -> str:
    """Colours as CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _var(name: str) -> str:
    return f"var(--{name})"


def _coloured(sheet: str, colours: Mapping[str, str]) -> str:
    return re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], sheet)


class Drawing:
    """A chart of `width` x `height` pixels. label: what it shows, for those who do not see it."""

    def __init__(self, width: float, height: float, label: str):
        size = f"0 0 {_number(width)} {_number(height)}"
        self.width, self.height = width, height
        self.root = Element("svg", {"class": "chart", "viewBox": size, "role": "img"})
        self.root.set("aria-label", plain(label))

    def add(self, tag: str, inside: Element | None = None, text: str = "", **attributes: Any):
        """Add an element and return it. attributes: `class_` is class, `data_c` is data-c."""
        named = {
            name.rstrip("_").replace("_", "-"): _number(value)
            for name, value in attributes.items()
            if value is not None
        }
        element = ElementTree.SubElement(self.root if inside is None else inside, tag, named)
        element.text = plain(text) or None
        return element

    def line(self, x1: float, y1: float, x2: float, y2: float, **more: Any) -> Element:
        """Add a line."""
        return self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, **more)

    def write(self, x: float, y: float, text: str, most: int = 0, **more: Any) -> Element:
        """Add text, of at most so many characters; the whole of it is a tooltip then."""
        shown = short(text, most) if most else text
        element = self.add("text", text=shown, x=x, y=y, **more)
        if shown != text:
            self.add("title", element, text)
        return element

    def __html__(self) -> str:
        """The SVG text, which jinja2 does not escape again."""
        return str(self)

    def __str__(self) -> str:
        return ElementTree.tostring(self.root, encoding="unicode")


@dataclass(frozen=True)
class Scale:
    """Numbers from low to high along pixels from start to end. log: by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; values beyond the ends are at the ends."""
        low, high = self._turned(self.low), self._turned(self.high)
        value = self._turned(min(max(value, self.low), self.high))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def has(self, value: float) -> bool:
        """Whether a value is between the ends."""
        return self.low <= value <= self.high

    def ticks(self, gap: float) -> list[tuple[float, str]]:
        """[(pixel, text)] of round numbers, at least about `gap` pixels apart."""
        most = max(3, int(abs(self.end - self.start) / gap))
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [s * 10.0**p for p in powers for s in steps if self.has(s * 10.0**p)]
                if 2 <= len(found) <= most:
                    return [(self(value), number_text(value)) for value in found]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step *= next(f for f in (1, 2, 5, 10) if (self.high - self.low) / (step * f) <= most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        values = [number * step for number in range(first, last + 1)]
        return [(self(v), f"{round(v, digits) + 0.0:,.{digits}f}") for v in values]

    def _turned(self, value: float) -> float:
        return math.log(value) if self.log else value


@dataclass(frozen=True)
class Words:
    """Words along pixels from start to end, each in the middle of its share."""

    words: Sequence[str]
    start: float
    end: float

    def __call__(self, word: str) -> float:
        """The pixel of a word."""
        return self.start + (self.words.index(word) + 0.5) * self.step

    @property
    def step(self) -> float:
        """The pixels of a word's share."""
        return (self.end - self.start) / len(self.words)


@dataclass
class Labels:
    """Writes labels where they cover neither each other nor what is taken already.

    room, taken: (left, top, right, bottom) in pixels.
    """

    drawing: Drawing
    room: tuple[float, float, float, float]
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def take(self, x: float, y: float, radius: float) -> None:
        """Keep labels away from a dot."""
        self.taken.append((x - radius, y - radius, x + radius, y + radius))

    def place(self, x: float, y: float, text: str, must: bool = False, **more: Any) -> bool:
        """Write a label beside a dot if there is room. must: write it all the same."""
        wide, high = WIDE * SMALL * len(text) + 4, SMALL + 2
        boxes = []
        for away in (9, 22):
            for side, dx, dy in (
                *((1, away, 0), (-1, away, 0), (0, 0, -away - 2), (0, 0, away + 2)),
                *((1, away, away), (1, away, -away), (-1, away, away), (-1, away, -away)),
            ):
                left = x + dx if side > 0 else x - dx - wide if side < 0 else x - wide / 2
                box = (left, y + dy - high / 2, left + wide, y + dy + high / 2)
                if all(a >= b for a, b in zip(box[:2], self.room[:2], strict=True)) and all(
                    a <= b for a, b in zip(box[2:], self.room[2:], strict=True)
                ):
                    covered = sum(_overlap(box, other) for other in self.taken)
                    boxes.append((covered, away, box))
        covered, away, box = min(boxes, key=lambda each: each[:2], default=(1, 0, None))
        if box is None or (covered and not must):
            return False
        self.taken.append(box)
        if away > 9:
            ends = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
            self.drawing.line(x, y, *ends, class_="leader")
        self.drawing.write(box[0] + 2, box[3] - 3.5, text, **more)
        return True


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart so that neighbours are `gap` from each other, between low and high."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, index in zip([None, *order], order, strict=False):
        least = low if before is None else moved[before] + gap
        moved[index] = max(places[index], least)
    limit = high
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def number_text(value: float) -> str:
    """A round number as text."""
    return f"{value:,.10f}".rstrip("0").rstrip(".") if 1e-4 <= abs(value) < 1e7 else f"{value:g}"


def short(text: str, most: int) -> str:
    """Text of at most `most` characters: its beginning and its end."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def told_apart(names: Sequence[str], most: int) -> dict[str, str]:
    """{name: label}: without what all names begin and end with, if they are longer than `most`."""
    different = list(dict.fromkeys(names))
    if len(different) < 2 or max(map(len, different)) <= most:
        return {name: name for name in different}
    first = _whole(os.path.commonprefix(different))
    rest = [name[len(first) :] for name in different]
    last = _whole(os.path.commonprefix([name[::-1] for name in rest]))
    cut = [name[: len(name) - len(last)] for name in rest]
    # As much of what is before as there is room for.
    room = most - 2 - max(map(len, cut))
    if len(first) > max(room, 0):
        first = "…" + (re.sub(r"^[\w]*\W?", "", first[-room:]) if room > 0 else "")
    after = "…" if len(last) > 1 else last
    return {n: f"{first}{c}{after}" for n, c in zip(different, cut, strict=True)}


def _whole(text: str) -> str:
    """A beginning without a word that is not whole."""
    return re.sub(r"[^\W_]+$", "", text)


def plain(text: str) -> str:
    """Text in which characters that XML does not allow are U+FFFD."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _number(value: Any) -> str:
    """An attribute's text; of a number one decimal at most."""
    if isinstance(value, float):
        return f"{round(value, 1) + 0.0:g}" if abs(value) < 1e5 else f"{value:.0f}"
    return plain(str(value))

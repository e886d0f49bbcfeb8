"""KLD against size as an SVG: log axes, error bars, Pareto front, labels that do not overlap.

Written by hand rather than by matplotlib: text stays text, the bytes depend on nothing but the
figures, and one style sheet serves light and dark.
"""

import html
import itertools
import math
import re
from typing import NamedTuple

from lib.report.figures import size_text, size_unit
from lib.report.judge import Form, pareto_front
from lib.report.looks import Look

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LIGHT = {
    "paper": "#ffffff", "ink": "#1b1f24", "muted": "#59636e", "line": "#d9dee3", "grid": "#eceff2",
    "front": "#8aa0b8", "unquantized": "#1f5fbf",
}  # fmt: skip
DARK = {
    "paper": "#171b20", "ink": "#e9ecef", "muted": "#9ba6b2", "line": "#3a424b", "grid": "#252b32",
    "front": "#62748a", "unquantized": "#7fb0ff",
}  # fmt: skip
# Where a decade may be ticked, from coarse to fine.
TICKS = (
    *((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 6, 8)),
    (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    tuple(1 + tenth / 10 for tenth in range(90)),
)
LABEL_SIZE = 11.5
MARKER = 4.5
STRIP = 34  # height of the band below the log axis, for forms of a KLD near 0
# A KLD that is less than this share of the largest one would only stretch the axis.
NEGLIGIBLE = 1e-7
# A form in the band that is this many times larger than the largest charted one is off the scale.
BEYOND = 1.25


def style(looks: list[Look]) -> str:
    """The plot's style sheet: light, and dark if the reader's screen asks for it.

    looks: those of the families that the plot shows.
    """
    light, dark = _rules(LIGHT, looks, 0), _rules(DARK, looks, 1)
    return light + "@media screen and (prefers-color-scheme: dark) {" + dark + "}"


def looks_of(forms: list[Form]) -> list[Look]:
    """The looks of the forms' families, each once, in the order of the registry."""
    found = {form.family: form.look for form in forms}
    return sorted(found.values(), key=lambda look: look.order)


def _rules(colour: dict[str, str], looks: list[Look], paper: int) -> str:
    rules = {
        "text": f"fill: {colour['ink']}; font-family: {FONT}",
        ".paper": f"fill: {colour['paper']}",
        ".quiet": f"fill: {colour['muted']}",
        ".label": f"paint-order: stroke; stroke: {colour['paper']}; stroke-width: 3px;"
        " stroke-linejoin: round",
        ".frame": f"stroke: {colour['line']}; fill: none",
        ".grid": f"stroke: {colour['grid']}; fill: none",
        ".leader": f"stroke: {colour['muted']}; stroke-width: 0.7; opacity: 0.7; fill: none",
        ".front": f"stroke: {colour['front']}; stroke-width: 1.6; fill: none",
        ".off": "opacity: 0.55",
        **{
            f".{look.name}": f"fill: {look.colours[paper]}; stroke: {look.colours[paper]}"
            for look in looks
        },
        ".unquantized": f"fill: {colour['paper']}; stroke: {colour['unquantized']};"
        " stroke-width: 1.6",
    }
    return "".join(f".quality-plot {name} {{ {rule} }}\n" for name, rule in rules.items())


class Box(NamedTuple):
    """A rectangle in pixels: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: "Box") -> bool:
        """Whether the two rectangles overlap."""
        return (
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1
        )

    def holds(self, other: "Box") -> bool:
        """Whether the other rectangle is inside this one."""
        return (
            self.x0 <= other.x0
            and other.x1 <= self.x1
            and self.y0 <= other.y0
            and other.y1 <= self.y1
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the rectangle that is nearest to (x, y)."""
        return min(max(x, self.x0), self.x1), min(max(y, self.y0), self.y1)


class Point(NamedTuple):
    """A form in the plot: centre (x, y), ends of its error bar (high, low) in pixels, and label."""

    form: Form
    x: float
    y: float
    high: float
    low: float
    on_front: bool
    label: str


class Label(NamedTuple):
    """The place of a label, and its leader line (x0, y0, x1, y1) if it is far from its point."""

    box: Box
    leader: tuple[float, float, float, float] | None


class Axis:
    """A logarithmic axis: values from `low` to `high` (positive) on pixels `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self, gap: float) -> list[float]:
        """Round values on the axis, as many as fit with at least `gap` pixels between them."""
        best: list[float] = []
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        slack = 1 + 1e-9
        for steps in TICKS:
            round_ones = (step * 10.0**power for power in powers for step in steps)
            found = [v for v in round_ones if self.low <= v * slack and v <= self.high * slack]
            if all(abs(b - a) >= gap for a, b in itertools.pairwise(map(self, found))):
                best = found
        return best


def short(value: float) -> str:
    """A tick's number as text: 0.001, 2.5, 16; powers of ten below 0.00001."""
    if value < 0.9999e-5:
        power = math.floor(math.log10(value) + 1e-9)
        digits = f"{value / 10.0**power:.2g}"
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"
    return f"{value:.6f}".rstrip("0").rstrip(".")


def escape(text: str) -> str:
    """Text for XML and HTML; characters that XML does not allow become U+FFFD."""
    return html.escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text))


def text_width(text: str, size: float) -> float:
    """Width of `text` in pixels in DejaVu Sans, which is wider than the fonts it stands in for."""
    narrow = {"I": 0.3, "1": 0.64, ".": 0.33, "-": 0.37, " ": 0.33, "_": 0.5, "M": 0.87, "W": 1.0}
    return size * sum(
        narrow.get(c, 0.64 if c.isdigit() or c.islower() else 0.72 if ord(c) < 0x2E80 else 1.05)
        for c in text
    )


def _label(form: Form) -> str:
    name = form.name if len(form.name) <= 26 else form.name[:25] + "…"
    return f"{form.look.tag} {name}".strip()


def draw(title: str, forms: list[Form], width: int, height: int, standalone: bool) -> str:
    """The plot as SVG text, of `width` x `height` pixels.

    standalone: a file of its own, with style sheet, title and all labels. Else it is part of a page
    that has the style sheet; then a plot narrower than 600 pixels, for a phone, labels only the
    Pareto front, and leaves out labels for which there is no room.
    """
    measured = [form for form in forms if form.loss is not None]
    narrow = width < 600
    name = f"{title}: KL divergence against size"
    size = f' width="{width}" height="{height}"' if standalone else ""
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="quality-plot" viewBox="0 0 {width}'
        f' {height}" role="img" aria-label="{escape(name)}"{size}>'
    ]
    if standalone:
        out += [f"<title>{escape(name)}</title>", f"<style>{style(looks_of(forms))}</style>"]
    out.append(f'<rect class="paper" width="{width}" height="{height}"/>')
    if not measured:
        return "\n".join([*out, *_nothing(title, width, height, standalone), "</svg>", ""])
    inner = Box(
        54 if narrow else 74,
        (58 if narrow else 38) + (36 if standalone else 0),
        width - (12 if narrow else 22),
        height - 48,
    )
    if standalone:
        shown = title if len(title) < 60 else title[:59] + "…"
        out.append(_text(inner.x0, 26, shown, 15, 600))
    out += _legend(measured, inner, narrow, standalone)
    points, frame = _layout(measured, inner, narrow)
    out += frame
    labels = place([p for p in points if p.on_front or not narrow], points, inner, narrow)
    leaders = [label.leader for _, label in labels if label.leader]
    out += [
        f'<path class="leader" d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}"/>' for x, y, u, v in leaders
    ]
    for point in points:
        out += _marker(point, inner, size_text(point.form.bytes, measured))
    for point, label in labels:
        out.append(
            _text(
                label.box.x0 + 2,
                label.box.y1 - 3.5,
                point.label,
                size=LABEL_SIZE,
                weight=600 if point.on_front else 400,
                css="label" if point.on_front else "label quiet",
            )
        )
    return "\n".join([*out, "</svg>", ""])


def _nothing(title: str, width: int, height: int, standalone: bool) -> list[str]:
    lines = [
        _text(width / 2, height / 2 - 6, "No KL divergence was measured", 16, 600, anchor="middle"),
        _text(
            width / 2,
            height / 2 + 18,
            "An evaluate: section in the config measures it.",
            13,
            css="quiet",
            anchor="middle",
        ),
    ]
    return [_text(24, 30, title, 15, 600), *lines] if standalone else lines


def _text(
    x: float,
    y: float,
    text: str,
    size: float = 11.5,
    weight: int = 400,
    css: str = "",
    anchor: str = "start",
    turn: bool = False,
) -> str:
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" font-weight="{weight}"'
        f' text-anchor="{anchor}"'
        + (f' class="{css}"' if css else "")
        + f"{turned}>{escape(text)}</text>"
    )


def _shape(form: Form, x: float, y: float, css: str = "") -> str:
    """The marker of a family, a dot or a diamond, or a ring for the unquantized model."""
    classes = f"{form.marker} {css}".strip()
    if form.quantized and form.look.diamond:
        r = MARKER + 1.2
        return (
            f'<path class="{classes}" d="M{x:.1f} {y - r:.1f}L{x + r:.1f} {y:.1f}'
            f'L{x:.1f} {y + r:.1f}L{x - r:.1f} {y:.1f}Z"/>'
        )
    return f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="{MARKER:g}"/>'


def _legend(forms: list[Form], inner: Box, narrow: bool, standalone: bool) -> list[str]:
    # The quants' families in the order of the registry, then the unquantized model.
    ordered = sorted(forms, key=lambda form: (not form.quantized, form.look.order))
    names = {form.marker: form.look.title if form.quantized else form.marker for form in ordered}
    markers = {form.marker: form for form in ordered}
    front = "Pareto front"
    y = 22 if standalone else 10
    widths = {kind: 16 + text_width(name, LABEL_SIZE) + 14 for kind, name in names.items()}
    total = sum(widths.values()) + 26 + text_width(front, LABEL_SIZE)
    x = 4 if narrow else inner.x1 - total if standalone else inner.x0
    out = []
    for kind, name in names.items():
        out += [_shape(markers[kind], x + 6, y), _text(x + 16, y + 4, name, css="quiet")]
        x += widths[kind]
    line = f'<path class="front" d="M{x:.1f} {y:.1f}h20"/>'
    return [*out, line, _text(x + 26, y + 4, front, css="quiet")]


def _layout(forms: list[Form], inner: Box, narrow: bool) -> tuple[list[Point], list[str]]:
    """The points, and the frame behind them: grid, axes, front."""
    top_kld = max(form.loss for form in forms)
    # The unquantized model is the reference: what it shows against itself is noise.
    charted = [form for form in forms if form.quantized and form.loss > top_kld * NEGLIGIBLE]
    floor = inner.y1 - (STRIP if len(charted) < len(forms) else 0)
    y_axis = _y_axis(charted, inner.y0, floor) if charted else None
    sizes = [form.bytes for form in charted or forms]
    # The unquantized file is often twice the largest quant's: it does not stretch the axis, but
    # stands at its end with its size in writing.
    end = max(sizes) * BEYOND
    sizes += [form.bytes for form in forms if form.bytes <= end]
    pad = max((max(sizes) / min(sizes)) ** 0.06, 1.12)
    x_axis = Axis(min(sizes) / pad, max(sizes) * pad, inner.x0, inner.x1)
    front = pareto_front(forms)
    points = []
    for form in forms:
        if form not in charted:
            x, y, label = x_axis(min(form.bytes, x_axis.high)), inner.y1 - STRIP / 2, _label(form)
            if form.bytes > end:
                x, label = inner.x1 - 2 * MARKER, f"{label}, {size_text(form.bytes, forms)} →"
            points.append(Point(form, x, y, y, y, form in front, label))
            continue
        error = form.kld.error or 0.0
        low = form.loss - error
        points.append(
            Point(
                form,
                x_axis(form.bytes),
                y_axis(form.loss),
                max(y_axis(form.loss + error), inner.y0),
                min(y_axis(low), floor) if low > 0 else floor,
                form in front,
                _label(form),
            )
        )
    frame = _frame(forms, inner, floor, x_axis, y_axis, narrow)
    line = [point for point in points if point.on_front and point.form in charted]
    if len(line) > 1:
        path = "L".join(f"{point.x:.1f} {point.y:.1f}" for point in line)
        frame.append(f'<path class="front" d="M{path}"/>')
    return points, frame


def _y_axis(charted: list[Form], top: float, floor: float) -> Axis:
    losses = [form.loss for form in charted]
    low, high = min(losses), max(losses)
    pad = max((high / low) ** 0.09, 1.35)
    return Axis(low / pad, high * pad, floor, top)


def _frame(
    forms: list[Form], inner: Box, floor: float, x_axis: Axis, y_axis: Axis | None, narrow: bool
) -> list[str]:
    unit, unit_name = size_unit(forms)
    x0, y0, x1, y1 = inner
    out = []
    sizes = Axis(x_axis.low / unit, x_axis.high / unit, x0, x1)
    for value in sizes.ticks(34):
        x = sizes(value)
        out += [
            f'<path class="grid" d="M{x:.1f} {y0:.1f}V{y1:.1f}"/>',
            _text(x, y1 + 17, short(value), 11, css="quiet", anchor="middle"),
        ]
    for value in y_axis.ticks(24 if narrow else 37) if y_axis else []:
        y = y_axis(value)
        out += [
            f'<path class="grid" d="M{x0:.1f} {y:.1f}H{x1:.1f}"/>',
            _text(x0 - 7, y + 4, short(value), 11, css="quiet", anchor="end"),
        ]
    out.append(f'<path class="frame" d="M{x0:.1f} {y0:.1f}V{y1:.1f}H{x1:.1f}"/>')
    if floor < y1:
        out += [
            f'<path class="frame" stroke-dasharray="3 3" d="M{x0:.1f} {floor:.1f}H{x1:.1f}"/>',
            _text(x0 - 7, y1 - STRIP / 2 + 4, "≈ 0", 11, css="quiet", anchor="end"),
        ]
    said = "KL divergence (nats a token), lower is better"
    out += [
        _text((x0 + x1) / 2, y1 + 38, f"File size ({unit_name})", 12, anchor="middle", css="quiet"),
        _text(10, y0 - 22, "KL divergence", 10.5, css="quiet")
        if narrow
        else _text(14, (y0 + y1) / 2, said, 12, css="quiet", anchor="middle", turn=True),
    ]
    parameters = {form.parameters for form in forms}
    if len(parameters) == 1 and (count := parameters.pop()):
        bits = Axis(x_axis.low * 8 / count, x_axis.high * 8 / count, x0, x1)
        for value in bits.ticks(30):
            x = bits(value)
            out += [
                f'<path class="frame" d="M{x:.1f} {y0:.1f}v-4"/>',
                _text(x, y0 - 8, short(value), 10.5, css="quiet", anchor="middle"),
            ]
        out += [
            _text(x1, y0 - 22, "bits per weight", 10.5, css="quiet", anchor="end"),
            f'<path class="frame" d="M{x0:.1f} {y0:.1f}H{x1:.1f}"/>',
        ]
    return out


def _marker(point: Point, inner: Box, size: str) -> list[str]:
    form, x = point.form, point.x
    said = f"{_label(form)}: {size}, KLD {form.kld.value:.3g}"
    if form.kld.error is not None:
        said += f" ± {form.kld.error:.1g}"
    out = [f'<g class="point" data-form="{escape(form.name)}"><title>{escape(said)}</title>']
    css = "" if point.on_front else "off"
    if point.low - point.high > 2 * MARKER:
        caps = [y for y in (point.high, point.low) if inner.y0 < y < inner.y1]
        bars = "".join(f"M{x - 3:.1f} {y:.1f}h6" for y in caps)
        out.append(
            f'<path class="{f"{form.marker} {css}".strip()}"'
            f' d="M{x:.1f} {point.high:.1f}V{point.low:.1f}{bars}"/>'
        )
    return [*out, _shape(form, x, point.y, css), "</g>"]


# Labels ------------------------------------------------------------------------------------------

RADII = (7, 11, 16, 22, 30, 40, 52, 66, 82, 100, 122, 148, 180)
DIRECTIONS = 24
CLASH = 1e4


def place(
    wanted: list[Point], points: list[Point], inner: Box, may_drop: bool
) -> list[tuple[Point, Label]]:
    """Find a place for the label of each wanted point, inside `inner`.

    Each label takes the cheapest of many places around its point, repeatedly, until none moves. A
    place costs its distance, and much more if it covers a label, a marker or the front. A label
    without a free place stays at its best one, or is left out if `may_drop`.
    """
    obstacles = _Obstacles(points)
    options = {point.form.name: _options(point, inner) for point in wanted}
    chosen: dict[str, Label] = {}
    # The crowded ones first, then again with all others in place, until nobody moves.
    order = sorted(wanted, key=lambda p: (not p.on_front, -obstacles.crowd(p), p.x, p.form.name))
    for _ in range(8):
        before = dict(chosen)
        for point in order:
            name = point.form.name
            others = [label for other, label in chosen.items() if other != name]
            lowest = math.inf
            for distance, label in options[name]:
                if distance >= lowest:
                    break
                cost = distance + obstacles.cost(point, label, others)
                if cost < lowest:
                    lowest, chosen[name] = cost, label
        if chosen == before:
            break
    placed: list[tuple[Point, Label]] = []
    for point in wanted:
        label, others = chosen.get(point.form.name), [other for _, other in placed]
        if label and (not may_drop or obstacles.cost(point, label, others) < CLASH):
            placed.append((point, label))
    return placed


def _options(point: Point, inner: Box) -> list[tuple[float, Label]]:
    """(cost of the distance, label) for all places inside the plot, cheapest first."""
    bold = 1.08 if point.on_front else 1.0
    w, h = text_width(point.label, LABEL_SIZE) * bold + 4, LABEL_SIZE + 3
    # The front's free side is below and left of it, everything else lies above and right; in
    # the band below the axis there is room beside the point only.
    liked = math.radians(180 if "→" in point.label else 150 if point.on_front else -30)
    found = []
    for radius in RADII:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            cos, sin = math.cos(angle), math.sin(angle)
            x = point.x + cos * radius + max(-1, min(1, 1.4 * cos)) * w / 2
            y = point.y + sin * radius + max(-1, min(1, 1.4 * sin)) * h / 2
            box = Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            if inner.holds(box):
                cost = radius + 3 * (1 - math.cos(angle - liked))
                found.append((cost, Label(box, _leader(point, box))))
    return sorted(found, key=lambda option: option[0])


def _leader(point: Point, box: Box) -> tuple[float, float, float, float] | None:
    x, y = box.nearest(point.x, point.y)
    away = math.hypot(x - point.x, y - point.y)
    if away < MARKER + 8:
        return None
    start = (MARKER + 1.5) / away
    return point.x + (x - point.x) * start, point.y + (y - point.y) * start, x, y


class _Obstacles:
    """What a label must not cover: markers, error bars and the front."""

    def __init__(self, points: list[Point]) -> None:
        self.points = points
        r = MARKER + 1.5
        self.markers = [(p, Box(p.x - r, p.y - r, p.x + r, p.y + r)) for p in points]
        self.bars = [
            Box(p.x - 1, p.high, p.x + 1, p.low) for p in points if p.low - p.high > 2 * MARKER
        ]
        self.fixed: dict[tuple[str, Box], float] = {}
        line = [p for p in points if p.on_front]
        self.front = [(a.x, a.y, b.x, b.y) for a, b in itertools.pairwise(line)]

    def crowd(self, point: Point) -> int:
        """How many points are near this one, itself included."""
        return sum(abs(p.x - point.x) < 60 and abs(p.y - point.y) < 30 for p in self.points)

    def cost(self, point: Point, label: Label, others: list[Label]) -> float:
        """The cost of what the label and its leader cover, with the other labels where they are."""
        if (fixed := self.fixed.get((point.form.name, label.box))) is None:
            fixed = self.fixed[point.form.name, label.box] = self._fixed_cost(point, label)
        cost = fixed
        for other in others:
            if label.box.meets(other.box):
                cost += CLASH
            if other.leader and _crosses(other.leader, label.box):
                cost += 300
            if label.leader:
                if _crosses(label.leader, other.box):
                    cost += 300
                if other.leader and _cut(label.leader, other.leader):
                    cost += 200
        return cost

    def _fixed_cost(self, point: Point, label: Label) -> float:
        """The part of the cost for markers, error bars and the front: it is always the same."""
        box, leader = label.box, label.leader
        cost = 40.0 * sum(box.meets(bar) for bar in self.bars)
        cost += 25 * sum(_crosses(line, box) for line in self.front)
        for owner, marker in self.markers:
            if box.meets(marker):
                cost += 400
            if leader and owner is not point and _crosses(leader, marker):
                cost += 60
        if leader:
            cost += 12 * sum(_cut(line, leader) for line in self.front)
        return cost


def _crosses(line: tuple[float, float, float, float], box: Box) -> bool:
    """Whether a line segment touches a box (Liang-Barsky clipping)."""
    x0, y0, x1, y1 = line
    # A shortcut, because most boxes are far away and this is called a million times.
    if (x0 < box.x0 and x1 < box.x0) or (x0 > box.x1 and x1 > box.x1):
        return False
    if (y0 < box.y0 and y1 < box.y0) or (y0 > box.y1 and y1 > box.y1):
        return False
    enter, leave = 0.0, 1.0
    for step, gap_low, gap_high in (
        (x1 - x0, box.x0 - x0, box.x1 - x0),
        (y1 - y0, box.y0 - y0, box.y1 - y0),
    ):
        if step == 0:
            if gap_low > 0 or gap_high < 0:
                return False
            continue
        first, second = sorted((gap_low / step, gap_high / step))
        enter, leave = max(enter, first), min(leave, second)
    return enter <= leave


def _cut(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two line segments cross."""

    def side(line: tuple[float, float, float, float], x: float, y: float) -> float:
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    return (
        side(a, b[0], b[1]) * side(a, b[2], b[3]) < 0
        and side(b, a[0], a[1]) * side(b, a[2], a[3]) < 0
    )

"""KLD against size as an SVG: error bars, Pareto front, labels that do not overlap.

Drawn by matplotlib, the labels placed by textalloc. Text stays text, the bytes depend on nothing
but the figures, and a style sheet (`style`) gives the reader's dark colours. What belongs to a form
has its name (data-form), which is how the page's script finds it.
"""

import io
import itertools
import math
import re
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import matplotlib.backends.backend_svg  # here, and not in each process that draws
import textalloc
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lib.report.figures import size_text, size_unit
from lib.report.judge import Form, charted, pareto_front
from lib.report.looks import Look

# The light colours, with which the plot is drawn, and the dark ones that replace them.
PAPER, INK, MUTED, LINE, GRID, FRONT, RING = COLOURS = (
    *("#ffffff", "#1b1f24", "#59636e", "#d9dee3", "#eceff2", "#8aa0b8", "#1f5fbf"),
)
DARK = ("#171b20", "#e9ecef", "#9ba6b2", "#3a424b", "#252b32", "#62748a", "#7fb0ff")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quantmill",
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,
}
PRESETS: dict[str, Any] = {"color": MUTED, "linewidth": 1, "dashes": (4, 3), "zorder": 1.5}
# Where a decade may be ticked, from coarse to fine.
TICKS = (
    *((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 6, 8)),
    (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    tuple(1 + tenth / 10 for tenth in range(90)),
)
STRIP = 34  # height in pixels of the band below the log axis, for forms of a KLD near 0
# A form in the band that is this many times larger than the largest charted one is off the scale.
BEYOND = 1.25
SVG = "{http://www.w3.org/2000/svg}"


def style(looks: list[Look]) -> str:
    """The plot's style sheet: fonts, and dark colours if the reader's screen asks for them.

    looks: those of the families that the plot shows.
    """
    pairs = [*zip(COLOURS, DARK, strict=True), *(look.colours for look in looks)]
    dark = "".join(
        f'.quality-plot [style*="{what}: {light}"] {{ {what}: {colour} !important }}\n'
        for light, colour in pairs
        for what in ("fill", "stroke")
    )
    return (
        f".quality-plot text {{ font-family: {FONT} !important }}\n"
        f".quality-plot .label text {{ paint-order: stroke; stroke: {PAPER}; stroke-width: 3px;"
        " stroke-linejoin: round }\n"
        ".quality-plot :is(.point, .whisker):not(.front) { opacity: 0.55 }\n"
        f"@media screen and (prefers-color-scheme: dark) {{\n{dark}"
        f".quality-plot .label text {{ stroke: {DARK[0]} }}\n}}\n"
    )


def looks_of(forms: list[Form]) -> list[Look]:
    """The looks of the forms' families, each once, in the order of the registry."""
    found = {form.family: form.look for form in forms}
    return sorted(found.values(), key=lambda look: look.order)


def presets_front(forms: list[Form]) -> list[Form]:
    """The front of the presets, which mixes are compared with; empty for a model without mixes."""
    if not any(form.mix for form in forms):
        return []
    found = pareto_front([form for form in charted(forms) if form.preset])
    return found if len(found) > 1 else []


class Point(NamedTuple):
    """A form in the plot, its place (x in bytes, y in nats) and its label.

    charted: it stands at its KLD, and not at 0.
    """

    form: Form
    x: float
    y: float
    on_front: bool
    charted: bool
    label: str


def draw(
    title: str, forms: list[Form], width: int, height: int, standalone: bool, scale: str = "log"
) -> str:
    """The plot as SVG text, of `width` x `height` pixels.

    standalone: a file of its own, with style sheet, title, legend and all labels. Else it is part
    of a page that has style sheet and legend, and tells the name of a point that has no label:
    labels for which there is no room are left out, and a plot narrower than 600 pixels, for a
    phone, labels only the Pareto front. scale: of both axes, log or linear.
    """
    measured = [form for form in forms if form.loss is not None]
    narrow = width < 600
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width / 72, height / 72), facecolor=PAPER)  # 1 pt is 1 pixel
        axes = figure.subplots()
        if standalone:
            left, top = 74 / width, 1 - 26 / height
            figure.text(left, top, _short(_plain(title), 60), size=15, weight="bold")
        points: list[Point] = []
        if measured:
            left, right = (54, 12) if narrow else (74, 22)
            top = 74 if standalone else 34
            figure.subplots_adjust(left / width, 48 / height, 1 - right / width, 1 - top / height)
            points = _chart(axes, measured, narrow, scale)
            _place(axes, points, narrow, draw_all=standalone)
            if standalone:
                _legend(axes, measured)
        else:
            axes.set_axis_off()
            axes.text(
                0.5, 0.52, "No KL divergence was measured", size=16, weight="bold", ha="center"
            )
            said = "An evaluate: section in the config measures it."
            axes.text(0.5, 0.47, said, size=13, color=MUTED, ha="center")
        written = io.StringIO()
        figure.savefig(written, format="svg", facecolor=PAPER, metadata={"Date": None})
    return _finish(written.getvalue(), title, measured, points, standalone)


def _chart(axes: Axes, forms: list[Form], narrow: bool, scale: str) -> list[Point]:
    """Draw axes, front and points."""
    at_their_loss = charted(forms)
    floor = _limits(axes, at_their_loss, forms, scale)
    _frame(axes, forms, narrow, floor)
    # The unquantized file is often twice the largest quant's: it does not stretch the axis, but
    # stands at its end with its size in writing.
    (left, right), bottom = axes.get_xlim(), axes.get_ylim()[0]
    near_zero = math.sqrt(bottom * floor) if scale == "log" else 0.0
    edge = right * (left / right) ** 0.02 if scale == "log" else right - (right - left) / 50
    front, points = pareto_front(forms), []
    for form in forms:
        x, y, label = form.bytes, form.loss, _short(_name(form), 32)
        if form not in at_their_loss:
            y = near_zero
            if form.bytes > right:
                x, label = edge, f"{label}, {size_text(form.bytes, forms)} →"
        points.append(Point(form, x, y, form in front, form in at_their_loss, label))
    line = [point for point in points if point.on_front and point.charted]
    axes.plot([p.x for p in line], [p.y for p in line], color=FRONT, linewidth=1.6, gid="front")
    if presets := presets_front(forms):
        sizes, losses = [form.bytes for form in presets], [form.loss for form in presets]
        axes.plot(sizes, losses, **PRESETS, gid="presets")
    for number, point in enumerate(points):
        error = point.charted and point.form.kld.error or 0.0
        low = max(point.y - error, floor if point.charted else bottom)
        yerr = [[point.y - low], [error]]
        marker, _, (whisker,) = axes.errorbar(
            point.x, point.y, yerr=yerr, **_marker(point.form), zorder=3
        )
        marker.set_gid(f"point-{number}")
        whisker.set_gid(f"whisker-{number}")
    return points


def _limits(axes: Axes, at_their_loss: list[Form], forms: list[Form], scale: str) -> float:
    """Set scale and limits of both axes; the KLD below which forms stand in the band of 0."""
    losses = [form.loss for form in at_their_loss] or [1.0]
    sizes = [form.bytes for form in at_their_loss or forms]
    sizes += [form.bytes for form in forms if form.bytes <= max(sizes) * BEYOND]
    axes.set(xscale=scale, yscale=scale)
    if scale == "linear":
        pad = (max(sizes) - min(sizes)) * 0.06 or max(sizes) * 0.1
        axes.set_xlim(max(min(sizes) - pad, 0), max(sizes) + pad)
        axes.set_ylim(-max(losses) * 0.04, max(losses) * 1.08)
        return 0.0
    pad = max((max(losses) / min(losses)) ** 0.09, 1.35)
    floor, ceiling = min(losses) / pad, max(losses) * pad
    strip = STRIP if len(at_their_loss) < len(forms) else 0
    bottom = floor * (floor / ceiling) ** (strip / (axes.bbox.height - strip))
    pad = max((max(sizes) / min(sizes)) ** 0.06, 1.12)
    axes.set(ylim=(bottom, ceiling), xlim=(min(sizes) / pad, max(sizes) * pad))
    return floor if at_their_loss else ceiling


def _marker(form: Form) -> dict[str, Any]:
    """The marker of a family, a dot or a diamond; a square for a mix, a ring for the model."""
    colour = form.look.colours[0] if form.quantized else RING
    return {
        "marker": "s" if form.mix else "D" if form.look.diamond and form.quantized else "o",
        "markersize": 8 if form.mix or form.look.diamond and form.quantized else 9,
        "color": colour,
        "markerfacecolor": colour if form.quantized else PAPER,
        "markeredgewidth": 1.6 if not form.quantized else 0.6,
        "linestyle": "none",
    }


def _legend(axes: Axes, forms: list[Form]) -> None:
    # The quants' families in the order of the registry, then the unquantized model.
    ordered = sorted(forms, key=lambda form: (not form.quantized, form.look.order))
    names = {_kind(form): form for form in ordered}
    drawn = {name: Line2D([], [], **_marker(form)) for name, form in names.items()}
    drawn["Pareto front"] = Line2D([], [], color=FRONT, linewidth=1.6)
    if presets_front(forms):
        drawn["presets' front"] = Line2D([], [], **PRESETS)
    axes.figure.legend(
        [*drawn.values()],
        [*drawn],
        loc="upper right",
        bbox_to_anchor=(1, 1),
        ncols=len(drawn),
        frameon=False,
        handlelength=1.2,
        handletextpad=0.4,
        columnspacing=1,
        labelcolor=MUTED,
        borderaxespad=0.2,
    )


def _kind(form: Form) -> str:
    """What the legend calls a form's marker."""
    return "mix" if form.mix else form.look.title if form.quantized else "unquantized"


def _frame(axes: Axes, forms: list[Form], narrow: bool, floor: float) -> None:
    """Grid, ticks, and what the axes are. floor: the KLD where the band of forms near 0 begins."""
    unit, unit_name = size_unit(forms)
    axes.set_xlabel(f"File size ({unit_name})", color=MUTED, size=12)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[:].set_color(LINE)
    axes.spines[["right", "top"]].set_visible(False)
    _tick(axes.xaxis, 34, unit=unit)
    _tick(axes.yaxis, 24 if narrow else 37, least=floor)
    aside = {"xycoords": "axes fraction", "textcoords": "offset points", "color": MUTED}
    if axes.get_yscale() == "log" and floor > axes.get_ylim()[0]:
        axes.axhline(floor, color=LINE, dashes=(3, 3), linewidth=1, zorder=1)
        axes.annotate("≈ 0", (0, 0), (-7, STRIP / 2), ha="right", va="center", **aside)
    parameters = {form.parameters for form in forms}
    if len(parameters) == 1 and (count := parameters.pop()):
        bits = axes.secondary_xaxis("top")
        bits.spines[:].set_color(LINE)
        bits.set_xlabel("bits per weight", color=MUTED, size=10.5, loc="right")
        _tick(bits.xaxis, 30, unit=count / 8, limits=axes.get_xlim())
    if narrow:
        axes.annotate("KL divergence", (0, 1), (-46, 20), size=10.5, **aside)
    else:
        said = "KL divergence (nats a token), lower is better"
        axes.set_ylabel(said, color=MUTED, size=12)


def _tick(axis: Axis, gap: float, unit: float = 1, least: float = 0, limits: Any = None) -> None:
    """Tick an axis at round numbers of `unit`, as many as fit with `gap` pixels between them.

    least: no tick is below it. limits: of the axis, if not its own.
    """
    low, high = limits or axis.get_view_interval()
    box = axis.axes.bbox
    pixels = box.width if axis.axis_name == "x" else box.height
    # Both axes of the plot have one scale; the second axis of sizes does not tell it.
    if axis.axes.figure.axes[0].get_xscale() == "log":
        ticks = _log_ticks(low / unit, high / unit, least / unit, pixels, gap)
    else:
        steps = MaxNLocator(max(int(pixels / gap / 1.5), 2), steps=[1, 2, 5, 10])
        ticks = [tick for tick in steps.tick_values(low / unit, high / unit) if tick >= least]
    axis.set_major_locator(FixedLocator([tick * unit for tick in ticks]))
    axis.set_minor_locator(NullLocator())
    plain = FuncFormatter(lambda value, _: f"{value / unit:.9f}".rstrip("0").rstrip("."))
    axis.set_major_formatter(plain)
    axis.set_tick_params(color=LINE, labelcolor=MUTED)


def _log_ticks(low: float, high: float, least: float, pixels: float, gap: float) -> list[float]:
    """Round numbers of a log axis from low to high, at least `gap` of its pixels apart."""
    pixels /= math.log(high / low)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for steps in TICKS:
        round_ones = (step * 10.0**power for power in powers for step in steps)
        found = [v for v in round_ones if max(low, least) <= v * (1 + 1e-9) and v <= high]
        if all(pixels * math.log(b / a) >= gap for a, b in itertools.pairwise(found)):
            best = found
    return best


def _place(axes: Axes, points: list[Point], narrow: bool, draw_all: bool) -> None:
    """Write the labels where they cover neither each other, nor a marker, nor the front.

    draw_all: also those for which there is no such place.
    """
    numbered = [(number, p) for number, p in enumerate(points) if p.on_front or not narrow]
    # The front's labels first, in bold.
    numbered.sort(key=lambda entry: not entry[1].on_front)
    wanted = [point for _, point in numbered]
    line = [p for p in points if p.on_front and p.form.quantized] or points
    *_, texts, leaders = textalloc.allocate(
        axes,
        [p.x for p in wanted],
        [p.y for p in wanted],
        [p.label for p in wanted],
        x_scatter=[p.x for p in points],
        y_scatter=[p.y for p in points],
        x_lines=[[p.x for p in line]],
        y_lines=[[p.y for p in line]],
        textsize=11,
        fontweight=["bold" if p.on_front else "normal" for p in wanted],
        textcolor=[INK if p.on_front else MUTED for p in wanted],
        linecolor=MUTED,
        linewidth=0.7,
        min_distance=0.012,
        max_distance=0.3,
        margin=0.002,
        nbr_candidates=1200,
        draw_all=draw_all,
        avoid_label_lines_overlap=True,
        avoid_crossing_label_lines=True,
    )
    for (number, _), *drawn in zip(numbered, texts, leaders, strict=True):
        for kind, artist in zip(("label", "leader"), drawn, strict=True):
            if artist:
                artist.set_gid(f"{kind}-{number}")


def _name(form: Form) -> str:
    return f"{form.look.tag} {_plain(form.name)}".strip()


def _plain(text: str) -> str:
    """Text in which characters that XML does not allow are U+FFFD."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)


def _short(text: str, most: int) -> str:
    """Text of at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _finish(svg: str, title: str, forms: list[Form], points: list[Point], standalone: bool) -> str:
    """Add to matplotlib's SVG what it has no words for: names, tooltips, the style sheet."""
    ElementTree.register_namespace("", SVG[1:-1])
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    name = f"{_plain(title)}: KL divergence against size"
    root.attrib |= {"class": "quality-plot", "role": "img", "aria-label": name}
    for size in ("width", "height"):
        value = root.attrib.pop(size)
        if standalone:
            root.set(size, value.removesuffix("pt"))
    for extra in (f"{SVG}metadata", f"{SVG}defs"):
        root.remove(root.find(extra))
    if standalone:
        for tag, text in (("style", style(looks_of(forms))), ("title", name)):
            element = ElementTree.Element(f"{SVG}{tag}")
            element.text = text
            root.insert(0, element)
    # A marker takes its colours from where it is used, so that the style sheet can change them.
    for path in root.iterfind(f".//{SVG}defs/{SVG}path"):
        path.set("style", re.sub(r"(fill|stroke): [^;]+;?", "", path.get("style", "")))
    for group in root.iter(f"{SVG}g"):
        kind, _, number = (group.attrib.pop("id", None) or "").partition("-")
        if kind in ("front", "presets"):
            group.set("class", f"{kind}-line")
            if kind == "presets":
                group.set("data-family", presets_front(forms)[0].family)
        if kind not in ("point", "whisker", "label", "leader") or not number:
            continue
        point = points[int(number)]
        form, classes = point.form, [kind]
        if kind in ("point", "whisker"):
            classes += ["front"] * point.on_front + ["charted"] * point.charted
        if kind == "point":
            said = f"{_name(form)}: {size_text(form.bytes, forms)}, KLD {form.kld.value:.3g}"
            if form.kld.error is not None:
                said += f" ± {form.kld.error:.1g}"
            ElementTree.SubElement(group, f"{SVG}title").text = said
        group.attrib |= {"class": " ".join(classes), "data-form": _plain(form.name)}
    return ElementTree.tostring(root, encoding="unicode") + "\n"

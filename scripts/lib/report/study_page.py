"""The plot and the page of a study."""

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from lib.report import study_charts, study_views
from lib.report.charts import DARK, LIGHT, Drawing, short, style, variables
from lib.report.figures import decimal
from lib.report.pages import render
from lib.report.study_views import View, short_names, value_text
from lib.studies import words
from lib.studies.choice import DRAWS, SURE, values_of
from lib.studies.outcome import Outcome, table

WIDTH, HEIGHT = 860, 500  # of the plot, in pixels
NARROW = 356
PAIRS = 6  # of figures, of which the page has a chart each
MINUS = "\u2212"


@dataclass
class Cell:
    """A cell of the table. value: as study.csv has it. told: its difference from the winner."""

    text: str
    value: str
    error: str = ""
    told: str = ""


@dataclass
class Row:
    """A row of the table.

    kind: candidate, dropped or parent. number: of a candidate among all. round: in which it was
    measured last. note: why it was dropped. cells: in the order of the columns.
    """

    name: str
    kind: str
    number: int | None
    round: int | None
    note: str
    winner: bool
    cells: list[Cell] = field(default_factory=list)


@dataclass
class Heading:
    """The head of a column. key: its name in study.csv. numeric: it is right-aligned."""

    key: str
    title: str
    numeric: bool
    told: str = ""


def write_plot(outcome: Outcome, file: Path) -> None:
    """Write the plot as SVG: the front of two figures, else all candidates in order."""
    file.write_text(plot(outcome), encoding="utf-8")


def plot(outcome: Outcome) -> str:
    """The plot as SVG text, a file of its own."""
    top = 66.0
    views = study_views.views(outcome)
    if not views:
        said = words.sentences(outcome)[0]
        drawing = Drawing(WIDTH, 120, f"{outcome.study}: {said}")
    else:
        view = views[-1]
        if len(view.asked) > 1:
            drawing = study_charts.front(view, *view.asked[:2], WIDTH, HEIGHT, top)
        else:
            drawing = study_charts.in_order(view, view.asked[0], WIDTH, top)
        said = _headline(outcome, view)
    drawing.root.set("xmlns", "http://www.w3.org/2000/svg")
    drawing.root.set("width", f"{drawing.width:g}")
    drawing.root.set("height", f"{drawing.height:g}")
    sheet = drawing.add("rect", width="100%", height="100%", class_="sheet")
    drawing.root.remove(sheet)
    drawing.root.insert(0, sheet)
    drawing.write(16, 28.0, outcome.study, 80, class_="title")
    drawing.write(16, 46.0, said, 140)
    if views and views[-1].decided and outcome.parents:
        drawing.write(WIDTH - 16, 28.0, "◇ merged models", class_="end parent")
    rules = drawing.add("style", text=style(standalone=True))
    drawing.root.remove(rules)
    drawing.root.insert(0, rules)
    return f"{drawing}\n"


def _headline(outcome: Outcome, view: View) -> str:
    """The plot's second line."""
    each = view.round
    of = f"of {len(outcome.candidates)}"
    bars = "bars: standard error of the difference from it"
    name = short(view.ids[view.winner], 48)
    if not view.decided:
        return f"After round {each.number}, {words.chunks_text(each)}: {name} is ahead {of}; {bars}"
    if outcome.decision.second is None:
        return f"{name}, the only candidate"
    sure = "decided" if words.is_decided(outcome.decision) else "undecided"
    return f"{name} wins {of}, {sure}; {bars}"


def page(outcome: Outcome, template: Path, script: Path) -> str:
    """The page as HTML. template: of jinja2. script: JavaScript for it."""
    columns, rows = table_of(outcome)
    sentences = words.answers(outcome)
    return render(
        template.read_text(encoding="utf-8"),
        script.read_text(encoding="utf-8"),
        outcome=outcome,
        answers=sentences,
        first=sentences[0][1],
        rule=words.rule(outcome),
        has_kld=any(column.key.startswith("kld.") for column in columns),
        has_perplexity=any(column.key.startswith("perplexity.") for column in columns),
        draws=f"{DRAWS:,}",
        sure=f"{100 * SURE:.0f}",
        columns=columns,
        groups=_groups(outcome, rows),
        rounds=[
            {"view": view, "said": words.chunks_text(view.round), "charts": _charts(view)}
            for view in study_views.views(outcome)
        ],
        chart_style=Markup(style()),
        light=Markup(variables(LIGHT)),
        dark=Markup(variables(DARK)),
    )


def _groups(outcome: Outcome, rows: list[Row]) -> list[list[Row]]:
    """Rows that are comparable, to be sorted among each other: those of the last round first.

    Parents are measured on the chunks of the study's last round.
    """
    groups: dict[int, list[Row]] = {}
    latest = max((row.round for row in rows if row.round is not None), default=0)
    for row in rows:
        with_it = latest if outcome.last else -1
        groups.setdefault(with_it if row.round is None else row.round, []).append(row)
    return [groups[key] for key in sorted(groups, reverse=True)]


def _charts(view: View) -> dict[str, Any]:
    """The charts of a round, as the template has them."""
    asked, pairs = view.asked, list(itertools.combinations(view.asked, 2))[:PAIRS]
    if len(asked) == 1:
        wide, narrow = (study_charts.in_order(view, asked[0], w) for w in (980, NARROW))
        heads = [{"wide": wide, "narrow": narrow}]
    elif len(pairs) == 1:
        wide = study_charts.front(view, *pairs[0], 980, 470)
        narrow = study_charts.front(view, *pairs[0], NARROW, 360)
        heads = [{"wide": wide, "narrow": narrow}]
    else:
        drawn = [study_charts.front(view, *pair, 480, 380) for pair in pairs]
        heads = [{"wide": each, "narrow": ""} for each in drawn]
    against = [
        (column, [study_charts.against(view, column, each) for each in view.parameters])
        for column in view.columns
    ]
    return {
        "heads": heads,
        "is_front": len(asked) > 1,
        "against": against if len(view.ids) > 1 else [],
        "heat": [study_views.heat(view, c) for c in view.columns] if len(view.grid) == 2 else [],
        "parallel": study_charts.parallel(view) if len(view.parameters) > 2 else None,
    }


# The table -------------------------------------------------------------------------------------


def table_of(outcome: Outcome) -> tuple[list[Heading], list[Row]]:
    """The columns and the rows of the page's table, from what study.csv has."""
    lines = list(csv.DictReader(io.StringIO(table(outcome))))
    names = list(dict.fromkeys(name for values in outcome.candidates.values() for name in values))
    if not outcome.rounds:
        lines = [*map(_unmeasured, outcome.candidates.items()), *lines]
    last = len(lines) - len(outcome.parents)
    numbers = {name: number for number, name in enumerate(outcome.candidates)}
    rows = [_candidate(line, outcome, numbers) for line in lines[:last]]
    note = "" if outcome.last else "on the last round's chunks"
    for line in lines[last:]:
        rows.append(Row(line["candidate"], "parent", None, None, note, False))
    figures = [figure.name for each in outcome.rounds for figure in each.figures]
    figures += [name for values in outcome.parent_values.values() for name in values]
    figures = list(dict.fromkeys(figures))
    pairs = list(dict.fromkeys((text, parent) for _, text, parent in outcome.away))
    ends = short_names(outcome.parents.values())
    columns = [Heading("rank", "Rank", True)]
    columns += [Heading(name, name, _are_numbers(lines, name)) for name in names]
    for name in figures:
        columns.append(Heading(name, _title(name), True, "of the round in which it was measured"))
    columns += [
        Heading(
            f"kld.{text}.{parent}",
            f"KLD to {ends[outcome.parents[parent]]} on {text}, nats",
            True,
            f"how far it went from {outcome.parents[parent]}",
        )
        for text, parent in pairs
    ]
    columns.append(Heading("score", "Score", True, "what is ordered by, lower is better"))
    if outcome.decision:
        columns.append(Heading("wins", "Wins, %", True, "share of the draws in which it wins"))
    columns.append(Heading("front", "Front", False, "no other beats it in all that is chosen by"))
    if any(row.kind == "dropped" for row in rows):
        columns.append(Heading("dropped", "Dropped", False))
    measured = {*figures, *(f"kld.{text}.{parent}" for text, parent in pairs)}
    apart = _apart(outcome)
    for column in columns:
        known = [apart.get((row.name, row.round, column.key), ("", None)) for row in rows]
        errors = [error for _, error in known] if column.key in measured else None
        cells = _cells(column, lines, errors)
        for row, cell, (told, _) in zip(rows, cells, known, strict=True):
            cell.told = told
            row.cells.append(cell)
    return columns, rows


def _candidate(line: dict[str, str], outcome: Outcome, numbers: dict[str, int]) -> Row:
    name = line["candidate"]
    return Row(
        name,
        "dropped" if line["dropped"] else "candidate",
        numbers[name],
        int(line["round"] or 0),
        line["dropped"],
        name == outcome.winner,
    )


def _unmeasured(candidate: tuple[str, dict[str, Any]]) -> dict[str, str]:
    name, values = candidate
    line = {"candidate": name, "round": "", "dropped": "", "front": ""}
    return line | {key: value_text(value) for key, value in values.items()}


def _title(name: str) -> str:
    kind, _, about = name.partition(".")
    if kind == "tasks":
        return f"{about}, % solved"
    return f"Perplexity, {about}" if kind == "perplexity" else f"KLD, {about}, nats"


def _are_numbers(lines: Sequence[dict[str, str]], name: str) -> bool:
    return all(_number(line[name]) is not None for line in lines if line.get(name))


def _cells(
    column: Heading, lines: Sequence[dict[str, str]], errors: Sequence[float | None] | None
) -> list[Cell]:
    """A column's cells, from study.csv's values.

    errors: for a figure, those of the differences from the winner, by which it has its digits (by
    its own error where there is none); None for what is no figure.
    """
    values = [line.get(column.key, "") for line in lines]
    if column.key == "wins":
        return [Cell(f"{100 * float(v):.0f}" if v else "", v) for v in values]
    if column.key == "score":
        return [Cell(f"{float(v):.4g}".replace("-", MINUS) if v else "", v) for v in values]
    if errors is None:
        shown = {"yes": "on it", "no": ""} if column.key == "front" else {}
        return [Cell(shown.get(v, v), v) for v in values]
    factor = 100 if words.is_high(column.key) else 1
    own = [_number(line.get(f"{column.key}_error", "")) for line in lines]
    figures = [_number(value) for value in values]
    digits = study_views.digits_of(
        [factor * figure for figure in figures if figure is not None],
        [factor * error for error in errors if error] or [factor * e for e in own if e],
    )
    cells = []
    for value, figure, error in zip(values, figures, own, strict=True):
        if figure is None:
            cells.append(Cell("–", ""))
            continue
        text = decimal(factor * figure, digits).replace("-", MINUS)
        cells.append(Cell(text, value, "" if error is None else decimal(factor * error, digits)))
    return cells


def _apart(outcome: Outcome) -> dict[tuple[str, int | None, str], tuple[str, float]]:
    """{(name, round, figure): how it is apart from the winner of its round}, in words.

    With the standard error of that, in the figure's unit. Parents have no round.
    """
    found = {}
    for each in outcome.rounds:
        best, is_last = each.order.order[0], outcome.last and each is outcome.rounds[-1]
        for figure in each.figures:
            rows = {
                (name, each.number): row for name, row in zip(each.ids, figure.pieces, strict=True)
            }
            for parent, pieces in outcome.parent_pieces.items() if is_last else ():
                if figure.name in pieces:
                    rows[outcome.parents[parent], None] = pieces[figure.name]
            together = replace(figure, pieces=np.array(list(rows.values())))
            leads = zip(*study_views.apart(together, best), values_of(together)[0], strict=True)
            for key, (less, error, value) in zip(rows, leads, strict=True):
                said = words.difference(figure.name, float(less), float(error))
                said += "" if said == "the same" else f" than the {'winner' if is_last else 'best'}"
                unit = float(value) if figure.is_logarithm else 1.0
                if key[0] != each.ids[best]:
                    found[(*key, figure.name)] = said, unit * float(error)
    return found


def _number(text: str) -> float | None:
    """A text as a finite number; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

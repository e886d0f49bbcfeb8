"""What a comparison of task vectors has found: its table, and what that says in words.

The table is that of scripts/similarity.py, whose --help has its columns.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from lib.errors import UserError

# Cosines below which task vectors are called unrelated, and above which alike.
UNRELATED, ALIKE = 0.1, 0.5
BY_CHANCE = 0.5  # share of conflicting signs where task vectors have nothing in common


class Both(NamedTuple):
    """A figure of each of the two models of a pair."""

    a: float | None
    b: float | None


class Line(NamedTuple):
    """A row of the table. Shares are of 1; figures that do not exist are None."""

    scope: str
    layer: int | None
    kind: str
    a: str
    b: str
    weights: int
    cosine: float | None
    conflict: float | None
    changed_both: float
    changed: Both
    norm: Both
    base_norm: float
    rank: Both

    @property
    def pair(self) -> tuple[str, str]:
        """The names of its models."""
        return self.a, self.b


class Cell(NamedTuple):
    """Two figures of a pair in a part of the model, of so many weights; None: they do not exist."""

    weights: int
    cosine: float | None
    conflict: float | None


class Model(NamedTuple):
    """What one fine-tune changed. Shares are of 1.

    relative: the norm of its task vector over that of the base. rank: the median of its matrices'
    effective ranks; None if none is known.
    """

    name: str
    norm: float
    relative: float
    changed: float
    rank: float | None


class Finding(NamedTuple):
    """A line of the page's summary: a heading, what was found, and more about it."""

    title: str
    found: str
    more: str


class Table:
    """The table of a comparison.

    lines: its rows. models: the fine-tunes, in its order. layers: their numbers. kinds: those in
    layers. outside: kinds that are in no layer, or in a tower's.
    """

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.all = [line for line in lines if line.scope == "all"]
        self.models = list(dict.fromkeys(name for line in self.all for name in line.pair))
        tensors = [line for line in lines if line.scope == "tensor"]
        self.layers = sorted({line.layer for line in tensors if line.layer is not None})
        self.kinds = _once(line.kind for line in tensors if line.layer is not None)
        self.outside = _once(line.kind for line in tensors if line.layer is None)

    @classmethod
    def read(cls, file: Path) -> "Table":
        """Read the CSV. Raises UserError if it is none."""
        try:
            with file.open(newline="", encoding="utf-8") as text:
                lines = [_line(row) for row in csv.DictReader(text)]
        except (LookupError, TypeError, ValueError):
            lines = []
        if not lines:
            raise UserError(f"{file}: is no table of task vectors; `snakemake verify` says more")
        return cls(lines)

    def facts(self) -> list[Model]:
        """What each fine-tune changed of the base."""
        found = []
        for name in self.models:
            line = next(line for line in self.all if name in line.pair)
            which = line.pair.index(name)
            ranks = {
                (each.layer, each.kind): each.rank[each.pair.index(name)]
                for each in self.lines
                if each.scope == "tensor" and name in each.pair
            }
            known = [rank for rank in ranks.values() if rank is not None]
            norm = line.norm[which]
            relative = norm / line.base_norm if line.base_norm else 0.0
            rank = median(known) if known else None
            found.append(Model(name, norm, relative, line.changed[which], rank))
        return found

    def scope(self, scope: str) -> dict[str, dict[tuple[str, str], Line]]:
        """{kind or layer: {pair: row}} of a scope."""
        found: dict[str, dict[tuple[str, str], Line]] = {}
        for line in self.lines:
            if line.scope == scope:
                name = line.kind if line.layer is None else str(line.layer)
                found.setdefault(name, {})[line.pair] = line
        return found

    def cells(self, pair: tuple[str, str]) -> dict[tuple[str, int | None], Cell]:
        """{(kind, layer): figures} of a pair, the experts of a layer taken together."""
        parts: dict[tuple[str, int | None], list[Line]] = {}
        for line in self.lines:
            if line.scope == "tensor" and line.pair == pair:
                parts.setdefault((line.kind, line.layer), []).append(line)
        return {place: _together(lines) for place, lines in parts.items()}


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _line(row: dict[str, str]) -> Line:
    def number(key: str) -> float | None:
        return float(row[key]) if row[key] else None

    def both(key: str) -> Both:
        return Both(number(f"{key}_a"), number(f"{key}_b"))

    return Line(
        row["scope"],
        int(row["layer"]) if row["layer"] else None,
        row["kind"],
        *(row["model_a"], row["model_b"], int(row["weights"])),
        *(number("cosine"), number("sign_conflict"), float(row["changed_both"])),
        *(both("changed"), both("norm"), float(row["base_norm"]), both("effective_rank")),
    )


def _together(lines: list[Line]) -> Cell:
    """The figures of several tensors of a pair together."""
    dot = sum((line.cosine or 0.0) * line.norm.a * line.norm.b for line in lines)
    lengths = math.sqrt(sum(x.norm.a**2 for x in lines) * sum(x.norm.b**2 for x in lines))
    both = sum(line.changed_both * line.weights for line in lines)
    against = sum((x.conflict or 0.0) * x.changed_both * x.weights for x in lines)
    weights = sum(line.weights for line in lines)
    return Cell(weights, dot / lengths if lengths else None, against / both if both else None)


def large(parts: Iterable[Any]) -> list[Any]:
    """Those with at least a hundredth of the weights of the largest, which chance does not rule.

    parts: lines or cells.
    """
    parts = list(parts)
    most = max((part.weights for part in parts), default=0)
    return [part for part in parts if 100 * part.weights >= most]


def short_names(models: list[str]) -> dict[str, str]:
    """{reference: the last part of it, or all where two models would have one name}."""
    last = {model: model.rstrip("/").rpartition("/")[2] for model in models}
    taken = list(last.values())
    return {m: name if taken.count(name) == 1 else m for m, name in last.items()}


def percent(share: float | None) -> str:
    """A share as text, as 38.2%; "–" if there is none."""
    if share is None:
        return "–"
    return "0%" if not share else f"{100 * share:.2g}%" if share < 0.01 else f"{100 * share:.1f}%"


def decimal(cosine: float | None) -> str:
    """A cosine as text, with a true minus sign; "–" if there is none."""
    if cosine is None:
        return "–"
    digits = 2 if abs(cosine) >= 0.1 else 3
    return f"{round(cosine, digits) + 0.0:.{digits}f}".replace("-", "\u2212")


def relation(line: Line) -> str:
    """What the cosine of a pair means, in words."""
    if line.cosine is None:
        return "one of them is the base itself"
    if line.cosine > 0.999999 and math.isclose(*line.norm, rel_tol=1e-6):
        return "they made the same changes"
    if line.cosine < -UNRELATED:
        return "they pull against each other"
    if line.cosine < UNRELATED:
        return "what they changed is nearly unrelated"
    if line.cosine < ALIKE:
        return "they changed partly the same"
    return "they changed largely the same"


def findings(table: Table) -> list[Finding]:
    """The summary: which pair is nearest, which conflicts most and where, who changed most."""
    names = short_names(table.models)

    def called(line: Line) -> str:
        return f"{names[line.a]} and {names[line.b]}"

    found = []
    near = [line for line in table.all if line.cosine is not None]
    if near:
        best = max(near, key=lambda line: line.cosine)
        only = len(table.all) == 1
        found.append(
            Finding(
                "How near" if only else "Nearest",
                called(best),
                f"Cosine {decimal(best.cosine)}: {relation(best)}.",
            )
        )
        least = min(near, key=lambda line: line.cosine)
        if len(near) > 1 and least.cosine < best.cosine:
            said = f"Cosine {decimal(least.cosine)}: {relation(least)}."
            found.append(Finding("Furthest apart", called(least), said))
    signs = [line for line in table.all if line.conflict is not None]
    if signs:
        worst = max(signs, key=lambda line: line.conflict)
        said = f"Of the weights that both changed ({percent(worst.changed_both)} of all), "
        said += f"{percent(worst.conflict)} in opposite directions; half is chance."
        title = "Most conflict" if len(table.all) > 1 else "Conflict"
        found.append(Finding(title, called(worst), said))
        if where := _where(table, worst.pair):
            found.append(Finding("Where", where[0], where[1]))
    found += _changes(table, names)
    return found


def _where(table: Table, pair: tuple[str, str]) -> tuple[str, str] | None:
    """In which kind and layer a pair conflicts most, and in which it does least."""
    worst, more = [], []
    for scope, told in (("kind", "{}"), ("layer", "layer {}")):
        lines = {name: by_pair[pair] for name, by_pair in table.scope(scope).items()}
        chosen = [n for n in lines if scope == "layer" or n in table.kinds] or [*lines]
        counted = large(lines[name] for name in chosen if lines[name].conflict is not None)
        lines = {name: line for name, line in lines.items() if line in counted}
        if len(lines) < 2:
            continue
        most = max(lines, key=lambda name: lines[name].conflict)
        least = min(lines, key=lambda name: lines[name].conflict)
        worst.append(told.format(most))
        more.append(
            f"{percent(lines[most].conflict)} in {told.format(most)}, the fewest "
            f"({percent(lines[least].conflict)}) in {told.format(least)}"
        )
    return (" and ".join(worst), f"Opposite signs: {'; '.join(more)}.") if worst else None


def _changes(table: Table, names: dict[str, str]) -> list[Finding]:
    """Who changed most, and who nothing."""
    facts = table.facts()
    same = [names[model.name] for model in facts if not model.norm]
    moved = sorted((m for m in facts if m.norm), key=lambda m: (-m.norm, m.name))
    found = []
    if moved:
        first, last = moved[0], moved[-1]
        said = f"By {percent(first.relative)} of the base’s norm"
        if len(moved) > 1:
            said += f"; {names[last.name]} least, by {percent(last.relative)}"
            said += f": {first.norm / last.norm:.1f} times less"
        found.append(Finding("Changed most", names[first.name], f"{said}."))
    if same:
        said = "Changed nothing, so it has no direction to compare."
        found.append(Finding("The base itself", " and ".join(same), said))
    return found

"""What came out of a study: from the files of what was measured, to rounds, ranks and a choice."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.studies.choice import Decision, Figure, Order, Rule, decide, in_order, survivors, values_of

# Before a parent's name in a role: a candidate may be called as a parent is, and has no slash.
PARENTS = "parents/"


class Pieces(NamedTuple):
    """What one file measured.

    values: piece by piece (Figure.pieces). tokens: a digest of how the text was cut into tokens; ""
    of tasks, and where the file does not say it.
    """

    values: np.ndarray
    tokens: str = ""

    def are_like(self, other: "Pieces") -> bool:
        """Whether both are of the same pieces, as far as that is known."""
        known = self.tokens and other.tokens
        return self.values.shape == other.values.shape and (
            not known or self.tokens == other.tokens
        )


@dataclass
class Round:
    """One round.

    number: from 1. chunks: of each text; None for all. ids: of the candidates that took part.
    figures: all that was measured of them, in their order. order: by the study's rule. kept: ids of
    those that stay for the next round; of the last round empty. decision: of the last round.
    """

    number: int
    chunks: int | None
    ids: list[str]
    figures: list[Figure]
    order: Order
    kept: list[str] = field(default_factory=list)
    decision: Decision | None = None

    def values(self) -> dict[str, dict[str, tuple[float, float]]]:
        """{candidate: {figure: (value, standard error)}}."""
        found = {name: {} for name in self.ids}
        for figure in self.figures:
            for name, mean, error in zip(self.ids, *values_of(figure), strict=True):
                found[name][figure.name] = float(mean), float(error)
        return found

    @property
    def in_order(self) -> list[str]:
        """The candidates' ids, the best first."""
        return [self.ids[index] for index in self.order.order]


@dataclass
class Outcome:
    """A study as far as it was measured.

    study: its name. candidates: {id: {name: value}}. parents: {id: reference}. rule: how it is
    chosen. rounds: those that are measured, from the first on. parent_values: {parent: {figure:
    (value, standard error)}}. away: {(candidate, text, parent): (KL divergence, standard error)}.
    last: whether the last of `rounds` is the study's last one. seed: the name whose values are
    seeds, or None. parent_pieces: {parent: {figure: a row of Figure.pieces}}. unlike: {figure:
    candidates that had other pieces than the first}: it is in no round. parents_unlike: {parent:
    figures in which it had other pieces than the candidates}: it has no values of these.
    """

    study: str
    candidates: dict[str, dict[str, Any]]
    parents: dict[str, str]
    rule: Rule
    rounds: list[Round]
    parent_values: dict[str, dict[str, tuple[float, float]]]
    away: dict[tuple[str, str, str], tuple[float, float]]
    last: bool
    seed: str | None
    parent_pieces: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    unlike: dict[str, list[str]] = field(default_factory=dict)
    parents_unlike: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_stuck(self) -> bool:
        """Whether candidates differ in the pieces of a figure that is chosen by."""
        return not self.unlike.keys().isdisjoint([*self.rule.minimise, *self.rule.maximise])

    @property
    def decision(self) -> Decision | None:
        """The choice; None until the last round is measured."""
        return self.rounds[-1].decision if self.last else None

    @property
    def winner(self) -> str | None:
        """The id of the winner; None until the last round is measured."""
        return self.rounds[-1].ids[self.decision.winner] if self.decision else None

    def dropped(self) -> dict[str, Round]:
        """{candidate: the round after which it was dropped}."""
        return {
            name: each
            for each, following in zip(self.rounds, self.rounds[1:], strict=False)
            for name in each.ids
            if name not in following.ids
        }


def read_outcome(options: Mapping[str, Any], measured: Mapping[str, str | None]) -> Outcome:
    """The outcome of a study, as far as all of a round is measured.

    options: those of its table's recipe (lib/stages/studies.py). measured: {role in that recipe:
    file, or None if it is not measured}; roles are `round N FIGURE [PARENT] NAME`, where NAME is a
    candidate's, or a parent's with PARENTS before it. Their order does not matter. Candidates are
    compared by the same pieces only: a figure of which they had others is left out, and a round in
    which it is chosen by is not over.
    """
    named = {name: dict(values) for name, values in dict(options["candidates"]).items()}
    options = {**options, "candidates": named, "parents": dict(options["parents"])}
    pieces: dict[tuple[int, str], dict[str, dict[str, Pieces]]] = {}
    lacking: set[tuple[int, str, str]] = set()
    for role, path in sorted(measured.items()):
        _, number, figure, *parent, name = role.split(" ")
        by = pieces.setdefault((int(number), figure), {})
        if path is None:
            lacking.add((int(number), figure, name))
        else:
            by.setdefault(name, {})["".join(parent)] = _pieces(Path(path))
    for number, figure, name in lacking:
        pieces[number, figure].pop(name, None)
    choose = options["choose"]
    rule = Rule(choose["minimise"], choose["maximise"], choose["by"], choose["weights"])
    rounds: list[Round] = []
    unlike: dict[str, list[str]] = {}
    ids, count = list(options["candidates"]), len(options["rounds"])
    for number, about in enumerate(options["rounds"], 1):
        found = {figure: by for (round_, figure), by in pieces.items() if round_ == number}
        if not ids or not found or any(not by.keys() >= set(ids) for by in found.values()):
            break
        unlike |= {figure: other for figure, by in found.items() if (other := _unlike(by, ids))}
        if not unlike.keys().isdisjoint([*rule.minimise, *rule.maximise]):
            break
        found = {figure: by for figure, by in found.items() if figure not in unlike}
        each = _round(number, about, ids, found, rule)
        rounds.append(each)
        if number == count:
            each.decision = decide(
                _asked(each.figures, rule), _within(rule, each.figures), _siblings(options, ids)
            )
            each.order.order = each.decision.order
        else:
            each.kept = [ids[index] for index in survivors(each.order, about["keep"])]
            kept = options["kept"][number - 1] if number <= len(options["kept"]) else []
            ids = [name for name in ids if name in kept]
    parents = {parent: {} for parent in options["parents"]}
    parent_pieces = {parent: {} for parent in options["parents"]}
    parents_unlike: dict[str, list[str]] = {}
    last = bool(rounds) and rounds[-1].number == count
    away = {}
    for (_, figure), by in pieces.items():
        for name, parts in by.items():
            for parent, part in parts.items():
                values = part.values
                mean, error = (float(a[0]) for a in values_of(Figure(figure, "", values[None])))
                if parent:
                    away[name, figure.removeprefix("kld."), parent] = mean, error
                elif name.startswith(PARENTS) and figure not in unlike:
                    own = name.removeprefix(PARENTS)
                    if last and _unlike(by, [rounds[-1].ids[0], name]):
                        parents_unlike.setdefault(own, []).append(figure)
                        continue
                    parents[own][figure], parent_pieces[own][figure] = (mean, error), values
    about = options["study"], options["candidates"], options["parents"]
    values = rounds, parents, away, last, options["seed"], parent_pieces, unlike, parents_unlike
    return Outcome(*about, rule, *values)


def _pieces(path: Path) -> Pieces:
    """What one file measured."""
    found = json.loads(path.read_text())
    if "correct" in found:
        return Pieces(np.array([float(sign) for sign in found["correct"]]))
    values = np.array(found["per_chunk"]["kld" if "kld" in found else "nll"])
    return Pieces(values, found.get("tokens", ""))


def _unlike(by: Mapping[str, Mapping[str, Pieces]], names: list[str]) -> list[str]:
    """Those of `names` that had other pieces of a figure than the first of them.

    by: {name: {parent, or "": what was measured}}. Of several parents the mean is taken.
    """
    first = next(iter(by[names[0]].values()))
    return [name for name in names if not all(map(first.are_like, by[name].values()))]


def _round(number: int, about: Mapping, ids: list[str], found: Mapping, rule: Rule) -> Round:
    figures = []
    for name, by in found.items():
        # Of several parents the mean.
        pieces = np.array([np.mean([p.values for p in by[each].values()], axis=0) for each in ids])
        figures.append(Figure(name, name.partition(".")[2] + (name[:5] == "tasks") * ".", pieces))
    # What is chosen by comes first, in the order of the config.
    first = [*rule.minimise, *rule.maximise]
    figures.sort(key=lambda f: first.index(f.name) if f.name in first else len(first))
    asked = _asked(figures, rule)
    means = {figure.name: figure.pieces.mean(axis=1) for figure in asked}
    order = in_order(means, _within(rule, asked))
    return Round(number, about["chunks"], list(ids), figures, order)


def _asked(figures: list[Figure], rule: Rule) -> list[Figure]:
    return [figure for figure in figures if figure.name in {*rule.minimise, *rule.maximise}]


def _within(rule: Rule, figures: list[Figure]) -> Rule:
    """The rule for figures that were measured: an early round lacks some."""
    names = {figure.name for figure in figures}
    low, high = ([n for n in part if n in names] for part in (rule.minimise, rule.maximise))
    return rule._replace(minimise=low, maximise=high)


def _siblings(options: Mapping[str, Any], ids: list[str]) -> Any:
    """The function that `decide` takes, for candidates of these ids; those dropped count too."""
    but_seed = {
        candidate: {name: value for name, value in values.items() if name != options["seed"]}
        for candidate, values in options["candidates"].items()
    }

    def siblings(index: int) -> list[str]:
        own = ids[index]
        return [each for each in but_seed if each != own and but_seed[each] == but_seed[own]]

    return siblings


def table(outcome: Outcome) -> str:
    """The outcome as CSV: a row a candidate, the best first, then those dropped, then the parents.

    Columns: candidate; rank, from 1 (empty for parents and for those dropped); what was varied;
    each figure and FIGURE_error, one standard error; kld.TEXT.PARENT, in nats a token; score, what
    is ordered by; wins, the share of draws in which it wins; front; round, the last in which it was
    measured; dropped.
    """
    names = list(dict.fromkeys(name for values in outcome.candidates.values() for name in values))
    rounds = outcome.rounds
    figures = [figure.name for each in rounds for figure in each.figures]
    # Parents have the figures of the last round before the candidates have them.
    figures += [name for values in outcome.parent_values.values() for name in values]
    figures = list(dict.fromkeys(figures))
    away = list(dict.fromkeys((text, parent) for _, text, parent in outcome.away))
    head = ["candidate", "rank", *names]
    head += [column for figure in figures for column in (figure, f"{figure}_error")]
    pairs = [f"kld.{text}.{parent}" for text, parent in away]
    head += [column for pair in pairs for column in (pair, f"{pair}_error")]
    head += ["score", "wins", "front", "round", "dropped"]
    rows = []
    for each in reversed(rounds):
        values, is_last = each.values(), each is rounds[-1]
        for place, name in enumerate(each.in_order, 1):
            if any(row["candidate"] == name for row in rows):
                continue
            row = {"candidate": name, "rank": place if is_last else ""}
            row |= {key: _plain(value) for key, value in outcome.candidates[name].items()}
            row |= _cells(values[name])
            row |= _cells(
                {
                    f"kld.{text}.{parent}": outcome.away[name, text, parent]
                    for text, parent in away
                    if (name, text, parent) in outcome.away
                }
            )
            index = each.ids.index(name)
            row |= {"score": f"{each.order.scores[index]:.6g}", "round": each.number}
            row["front"] = "yes" if index in each.order.front else "no"
            if each.decision:
                row["wins"] = f"{each.decision.wins[index]:.3f}"
            if not is_last:
                row["dropped"] = f"place {place} of {len(each.ids)} in round {each.number}"
            rows.append(row)
    for parent in outcome.parents:
        rows.append({"candidate": outcome.parents[parent]} | _cells(outcome.parent_values[parent]))
    text = io.StringIO()
    writer = csv.DictWriter(text, head, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cells(values: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    found = {}
    for name, (value, error) in values.items():
        found |= {name: f"{value:.7g}", f"{name}_error": f"{error:.3g}"}
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

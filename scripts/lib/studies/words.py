"""What came out of a study, in sentences: for `choose`, for its page, for `why`."""

import json
import math
from collections.abc import Iterable, Mapping

from lib.studies.choice import DRAWS, SURE, Decision, Figure, values_of
from lib.studies.outcome import Outcome, Round
from lib.units import count

CLEAR = 2  # standard errors, from which on a difference is no chance
NAMED = 4  # parents or candidates of which a sentence names each
KINDS = {"perplexity": "perplexity", "kld": "KL divergence", "tasks": "tasks solved"}
HOW = {
    "ranks": "The lowest mean of ranks wins",
    "sum": "The lowest weighted sum wins",
    "pareto": "Of those that no other beats in everything the lowest mean of ranks wins",
}


def sentences(outcome: Outcome) -> list[str]:
    """Which candidate wins, by how much, how sure that is, what the parents reach, what dropped."""
    return [text for _, text in answers(outcome)]


def answers(outcome: Outcome) -> list[tuple[str, str]]:
    """The sentences with a title each: [(title, text)]."""
    if not outcome.rounds:
        return [("So far", unlike(outcome) or "Nothing is measured yet.")]
    if outcome.decision:
        found = [
            ("Winner", winner(outcome)),
            ("By how much", lead(outcome)),
            ("How sure", sureness(outcome)),
        ]
    else:
        found = [("So far", _so_far(outcome.rounds[-1], outcome))]
    found += [("Merged models", parents(outcome)), ("Not compared", unlike(outcome))]
    found += [("Dropped", dropped(outcome))]
    return [(title, text) for title, text in found if text]


def winner(outcome: Outcome) -> str:
    """Which candidate wins, and what it reached."""
    each = outcome.rounds[-1]
    taking = len(outcome.candidates)
    what = f"wins of {count(taking, 'candidate')}" if taking > 1 else "is the only candidate"
    said = _reached(each, outcome.winner, outcome)
    return f"{outcome.winner} {what}{_values(outcome, outcome.winner)}: {said}."


def sureness(outcome: Outcome) -> str:
    """How sure the choice is."""
    found, each = outcome.decision, outcome.rounds[-1]
    if found.second is None:
        return "There is no other to compare it with."
    second = each.ids[found.second]
    if second in found.siblings:
        return (
            f"Undecided: {second}, the second, differs from it in the seed alone, so which of the "
            "two is ahead is chance."
        )
    if found.siblings:
        one, *more = found.siblings
        also = f" (and {len(more)} more)" if more else ""
        return (
            f"Undecided: {one}{also} differs from it in the seed alone and is behind {second}, the "
            "second, so a seed does more than what sets the first two apart."
        )
    asked = [figure for figure in each.figures if figure.name in _asked(outcome)]
    pieces = _pieces_of(figure.name for figure in asked)
    if any(figure.pieces.shape[1] < 2 for figure in asked):
        return f"Unknown: what chance does is not seen in one piece; measure more {pieces}."
    drawn = f"of {DRAWS:,} random draws of the measured {pieces}"
    if found.is_sure:
        return f"Decided: it wins in {_share(found.share)} {drawn}."
    shares = sorted(zip(found.wins, each.ids, strict=True), reverse=True, key=lambda pair: pair[0])
    others = [
        f"{name} in {share:.0%}"
        for share, name in shares
        if name != outcome.winner and share > 0.01
    ][:3]
    beside = f" ({', '.join(others)})" if others else ""
    return (
        f"Undecided: it wins in {_share(found.share)} {drawn}{beside}; from {100 * SURE:.0f}% on a "
        f"choice counts as decided. More {pieces} may tell them apart."
    )


def lead(outcome: Outcome) -> str:
    """By how much the winner leads the second."""
    found, each = outcome.decision, outcome.rounds[-1]
    if found.second is None:
        return ""
    second = each.ids[found.second]
    apart = _by_kind((name, difference(name, *lead)) for name, lead in found.lead.items())
    text = f"Against it the second, {second}, has {apart}."
    scores = each.order.scores
    if math.isclose(scores[found.winner], scores[found.second], rel_tol=0, abs_tol=1e-9):
        more = found.wins[found.winner] > found.wins[found.second]
        taken = "that wins more draws" if more else "that the config names first"
        text += f" Both have the same score, and the one {taken} was taken."
    pieces = _pieces_of(found.lead)
    return f"{text} All had the same {pieces}, so a difference is known better than the figures."


def parents(outcome: Outcome) -> str:
    """What the merged models reach."""
    known = {
        outcome.parents[parent]: {name: values[name] for name in _asked(outcome) if name in values}
        for parent, values in outcome.parent_values.items()
    }
    known = {name: values for name, values in known.items() if values}
    left_out = _parents_left_out(outcome)
    if not known:
        return left_out
    if len(known) <= NAMED:
        said = "; ".join(f"{name} has {_said(values)}" for name, values in known.items())
    else:
        said = "; ".join(_best_parent(known, name) for name in _asked(outcome))
    if not outcome.last:
        return f"Unmerged, on the chunks of the last round (not comparable with this one), {said}."
    return " ".join(filter(None, (f"Unmerged, {said}.", _against_parents(outcome), left_out)))


def unlike(outcome: Outcome) -> str:
    """Which figures are not compared, because candidates had other pieces."""
    said = []
    for name, others in outcome.unlike.items():
        who, more = ", ".join(others[:NAMED]), len(others) - NAMED
        who += f" and {more} more" if more > 0 else ""
        said.append(f"{titled(name)} is not comparable: {_other(name, who)} than for the rest")
    if not said:
        return ""
    text = f"{'; '.join(said)}."
    end = "Nothing is chosen: choose by tasks, in one round, or give all candidates one tokenizer."
    return text[0].upper() + text[1:] + (f" {end}" if outcome.is_stuck else "")


def dropped(outcome: Outcome) -> str:
    """What dropped out, and when."""
    by_round: dict[int, list[str]] = {}
    for name, each in outcome.dropped().items():
        by_round.setdefault(each.number, []).append(name)
    parts = []
    for each in outcome.rounds:
        if names := by_round.get(each.number):
            names.sort(key=each.in_order.index)
            who = ", ".join(names)
            if len(names) > NAMED:
                who = f"{len(names)} of {len(each.ids)} candidates, the best of them {names[0]}"
            parts.append(f"after round {each.number} ({chunks_text(each)}) {who}")
    return f"Dropped {'; '.join(parts)}." if parts else ""


def rule(outcome: Outcome) -> str:
    """How the winner is found, without a full stop."""
    *before, last = [f"{titled(name)}{_weight(outcome, name)}" for name in _asked(outcome)]
    return f"{HOW[outcome.rule.by]}, by " + (f"{', '.join(before)} and " if before else "") + last


def chunks_text(each: Round) -> str:
    """On how much a round measured texts."""
    return f"{count(each.chunks, 'chunk')} of each text" if each.chunks else "all of each text"


def titled(name: str) -> str:
    """A figure in words: `perplexity on code_text`, `tasks solved in hellaswag`."""
    kind, _, about = name.partition(".")
    return f"{KINDS[kind]} {'in' if kind == 'tasks' else 'on'} {about}"


def is_high(name: str) -> bool:
    """Whether a figure is the better the higher it is."""
    return name.startswith("tasks.")


def valued(name: str, value: float, error: float) -> str:
    """A figure's value and error with its unit."""
    if is_high(name):
        return f"{figure(100 * value, 100 * error)}%"
    return figure(value, error) + (" nats" if name.startswith("kld.") else "")


def figure(value: float, error: float) -> str:
    """A figure and its standard error, to its second digit; without one if it is NaN or 0."""
    if not error or not math.isfinite(error):
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:.{max(0, digits)}f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{round(value, digits) + 0.0:.{digits}f} ± {error:.{digits}f}"


def difference(name: str, apart: float, error: float) -> str:
    """How another's figure is apart from the winner's (Decision.lead): `0.14 ± 0.06% higher`."""
    if name.startswith("perplexity."):  # the difference of its logarithms
        ratio = math.exp(apart)
        apart, error, unit = 100 * (ratio - 1), 100 * ratio * error, "%"
    elif is_high(name):
        apart, error, unit = 100 * apart, 100 * error, " points"
    else:
        unit = " nats"
    if not apart:
        return "the same"
    return f"{figure(abs(apart), error)}{unit} {'higher' if apart > 0 else 'lower'}"


def is_decided(decision: Decision | None) -> bool:
    """Whether the choice is made and sure."""
    return decision is not None and decision.is_sure


def _against_parents(outcome: Outcome) -> str:
    """Which parents are better than the winner beyond chance, by the pieces that both had."""
    own = {
        figure.name: figure.pieces[outcome.decision.winner] for figure in outcome.rounds[-1].figures
    }
    better: dict[str, list[str]] = {}
    clear = []  # of each comparison whether the winner is better
    for parent, pieces in outcome.parent_pieces.items():
        where = []
        for name in _asked(outcome):
            if name not in pieces:
                continue
            less, error = values_of(Figure("", "", (pieces[name] - own[name])[None]))
            less = -less if is_high(name) else less
            clear.append(less > CLEAR * error)
            if less < -CLEAR * error:
                where.append(titled(name))
        if where:
            better.setdefault(" and ".join(where), []).append(outcome.parents[parent])
    by = "by more than two standard errors of the difference"
    if better:
        said = [f"{', '.join(names)} in {where}" for where, names in better.items()]
        return f"Better than the winner, {by}: {'; '.join(said)}."
    if all(clear):
        return f"The winner is better than {'all of them' if len(clear) > 1 else 'it'}, {by}."
    return f"None of them is better than the winner {by}."


def _parents_left_out(outcome: Outcome) -> str:
    """Which parents are not compared, because they had other pieces than the candidates."""
    said = []
    for parent, figures in outcome.parents_unlike.items():
        why = _other(figures[0], outcome.parents[parent])
        where = " and ".join(map(titled, figures))
        said.append(f"{why[0].upper()}{why[1:]} than for the candidates: its {where} is left out.")
    return " ".join(said)


def _other(name: str, who: str) -> str:
    """How the pieces of a figure differ, in words."""
    if name.startswith("perplexity."):
        return f"the text was cut into other tokens for {who}"
    return f"there were other {_pieces_of([name])} for {who}"


def _so_far(each: Round, outcome: Outcome) -> str:
    stay = f"{len(each.kept)} of {count(len(each.ids), 'candidate')} stay for the next round"
    ahead = each.in_order[0]
    reached = _reached(each, ahead, outcome)
    said = f"Round {each.number} is measured ({chunks_text(each)}), and {stay}."
    return f"{said} {ahead} is ahead{_values(outcome, ahead)}: {reached}."


def _values(outcome: Outcome, candidate: str) -> str:
    """What was varied in a candidate, in brackets."""
    values = outcome.candidates[candidate].items()
    said = (f"{name} {v if isinstance(v, str) else json.dumps(v)}" for name, v in values)
    return f" ({', '.join(said)})" if values else ""


def _reached(each: Round, candidate: str, outcome: Outcome) -> str:
    values = each.values()[candidate]
    return _said({name: values[name] for name in _asked(outcome) if name in values})


def _said(values: Mapping[str, tuple[float, float]]) -> str:
    return _by_kind((name, valued(name, *found)) for name, found in values.items())


def _by_kind(said: Iterable[tuple[str, str]]) -> str:
    """Texts about figures, each kind of figure named once: `perplexity 6.1 on a, 7.2 on b`."""
    kinds: dict[str, list[str]] = {}
    for name, text in said:
        kind, _, about = name.partition(".")
        place = f"{text} in {about}" if kind == "tasks" else f"{text} on {about}"
        kinds.setdefault(KINDS[kind], []).append(place)
    return "; ".join(f"{kind} {', '.join(texts)}" for kind, texts in kinds.items())


def _best_parent(known: Mapping[str, Mapping[str, tuple[float, float]]], name: str) -> str:
    having = {parent: values[name] for parent, values in known.items() if name in values}
    if not having:
        return f"{titled(name)} is of candidates alone"
    best = (max if is_high(name) else min)(having, key=lambda parent: having[parent][0])
    return f"the best of {len(having)} in {titled(name)} is {best}, {valued(name, *having[best])}"


def _asked(outcome: Outcome) -> tuple[str, ...]:
    return (*outcome.rule.minimise, *outcome.rule.maximise)


def _weight(outcome: Outcome, name: str) -> str:
    if outcome.rule.by != "sum":
        return ""
    logarithm = ", its logarithm" if name.startswith("perplexity.") else ""
    return f" (weight {outcome.rule.weights.get(name, 1.0):g}{logarithm})"


def _pieces_of(names: Iterable[str]) -> str:
    kinds = {"tasks" if is_high(name) else "chunks" for name in names}
    return " and ".join(sorted(kinds))


def _share(share: float) -> str:
    """A share in percent; it is not rounded up to all of it, nor to what counts as decided."""
    rounded = round(100 * share)
    is_beyond = share < SURE <= rounded / 100 or share < 1 == rounded / 100
    return f"{rounded - is_beyond}%"

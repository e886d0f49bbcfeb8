"""What came out of a study, in sentences: for `choose`, for its page, for `why`."""

from lib.studies.choice import SURE, Decision
from lib.studies.outcome import Outcome, Round
from lib.units import count


def sentences(outcome: Outcome) -> list[str]:
    """Which candidate wins, by how much, how sure that is, what the parents reach, what dropped."""
    if not outcome.rounds:
        return ["Nothing is measured yet."]
    lines = []
    if outcome.decision:
        lines += [winner(outcome), sureness(outcome), lead(outcome)]
    else:
        each = outcome.rounds[-1]
        stay = f"{len(each.kept)} of {count(len(each.ids), 'candidate')} stay for the next round"
        lines.append(f"Round {each.number} is measured: {stay}. {_best(each)} is ahead.")
    lines += [parents(outcome), dropped(outcome)]
    return [line for line in lines if line]


def winner(outcome: Outcome) -> str:
    """Which candidate wins, and what it reached."""
    each = outcome.rounds[-1]
    values = each.values()[outcome.winner]
    asked = (*outcome.rule.minimise, *outcome.rule.maximise)
    said = ", ".join(f"{name} {figure(*values[name])}" for name in asked)
    return f"{outcome.winner} wins of {count(len(each.ids), 'candidate')}: {said}."


def sureness(outcome: Outcome) -> str:
    """How sure the choice is."""
    found = outcome.decision
    if found.second is None:
        return "It is the only one."
    second = outcome.rounds[-1].ids[found.second]
    if found.only_seed:
        return (
            f"Undecided: {second}, the second, differs from it in the seed alone, so that which of "
            "them is ahead is chance."
        )
    share = f"{100 * found.share:.0f}%"
    drawn = "of 2,000 drawings of the measured pieces"
    if found.is_sure:
        return f"Decided: it wins in {share} {drawn}."
    return (
        f"Undecided: it wins in {share} {drawn}, and from {100 * SURE:.0f}% on a choice counts as "
        f"decided; {second} is as good as far as this text can tell. More chunks would tell more."
    )


def lead(outcome: Outcome) -> str:
    """By how much the winner leads the second."""
    found, each = outcome.decision, outcome.rounds[-1]
    if found.second is None:
        return ""
    parts = []
    for name, (apart, error) in found.lead.items():
        unit, factor = ("%", 100) if not name.startswith("kld.") else (" nats", 1)
        parts.append(f"{name} {factor * apart:+.2g} ± {factor * error:.1g}{unit}")
    return f"Against it {each.ids[found.second]} has {', '.join(parts)}."


def parents(outcome: Outcome) -> str:
    """What the merged models reach."""
    asked = (*outcome.rule.minimise, *outcome.rule.maximise)
    parts = []
    for parent, values in outcome.parent_values.items():
        said = ", ".join(f"{f} {figure(*values[f])}" for f in asked if f in values)
        if said:
            parts.append(f"{outcome.parents[parent]} {said}")
    return f"The merged models themselves: {'; '.join(parts)}." if parts else ""


def dropped(outcome: Outcome) -> str:
    """What dropped out, and when."""
    by_round: dict[int, list[str]] = {}
    for name, each in outcome.dropped().items():
        by_round.setdefault(each.number, []).append(name)
    parts = [f"{', '.join(names)} after round {number}" for number, names in by_round.items()]
    return f"Dropped: {'; '.join(parts)}." if parts else ""


def _best(each: Round) -> str:
    return each.in_order[0]


def figure(value: float, error: float) -> str:
    """A figure and its standard error."""
    return f"{value:.4g} ± {error:.1g}"


def is_decided(decision: Decision | None) -> bool:
    """Whether the choice is made and sure."""
    return decision is not None and decision.is_sure

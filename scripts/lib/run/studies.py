"""The studies of a run: what came out of them by now, and whether the lock still says it."""

from typing import TYPE_CHECKING, Any

from lib.planning.graph import HOW_TO_CHOOSE
from lib.planning.staleness import Plan, State
from lib.stages.merge import seed_of
from lib.studies.grid import Candidate
from lib.studies.lock import Chosen, Winner

if TYPE_CHECKING:  # it takes numpy, and a dry run does without
    from lib.studies.outcome import Outcome


def outcome_now(plan: Plan, name: str) -> "Outcome":
    """What came out of a study, as far as its measurements are up to date.

    Who stays after a round is found anew and not read from the lock.
    """
    from lib.studies.outcome import read_outcome

    declared = plan.graph.shared.study(name)
    measured = {
        role: artifact.path if plan.state(artifact) is State.FRESH else None
        for role, artifact in declared.measured.items()
    }
    kept: list[list[str]] = []
    while True:
        outcome = read_outcome(declared.table.options | {"kept": kept}, measured)
        if outcome.last or len(outcome.rounds) <= len(kept):
            return outcome
        kept.append(outcome.rounds[-1].kept)


def notes(plan: Plan) -> list[str]:
    """Lines: which models wait for a study, and where `choose` would change the lock."""
    config = plan.graph.config
    lines = [
        f"{name} waits for the study {study}: {HOW_TO_CHOOSE}."
        for name, study in config.waiting.items()
    ]
    for name in plan.graph.names:
        if name in config.studies:
            lines += _note(plan, name, config.chosen.get(name, Chosen()))
    return lines


def _made_by(merge: Candidate | Winner) -> tuple[dict[str, Any], int | None]:
    """What makes a merge: mergekit's configuration, and its seed if the method draws."""
    return merge.merge, seed_of(merge.merge, merge.random_seed)


def _note(plan: Plan, name: str, chosen: Chosen) -> list[str]:
    study, winner = plan.graph.config.studies[name], chosen.winner
    if winner:
        now = {each.id: each for each in study.candidates}.get(winner.candidate)
        if now is None or _made_by(now) != _made_by(winner):
            what = "is no longer one of it" if now is None else "is no longer that merge"
            how = f" --config model={name}" if winner.picked else ""
            was = "picked" if winner.picked else "chosen"
            said = f"{winner.candidate}, which was {was}, {what}"
            return [f"study {name}: {said}: `snakemake choose{how}`."]
        if winner.picked:
            return []
    outcome = outcome_now(plan, name)
    if outcome.is_stuck:
        from lib.studies import words

        return [f"study {name}: {words.unlike(outcome)}"]
    kept = [each.kept for each in outcome.rounds if each.kept]
    if kept and kept != [entry["kept"] for entry in chosen.rounds][: len(kept)]:
        number = len(kept)
        return [f"study {name}: round {number} is measured: `snakemake choose` says who stays."]
    if outcome.winner and winner is None:
        return [f"study {name}: it is measured: `snakemake choose` takes {outcome.winner}."]
    if outcome.winner and outcome.winner != winner.candidate:
        was = f"{winner.candidate} was chosen, and {outcome.winner} would be now"
        return [f"study {name}: {was}: `snakemake choose` takes it."]
    return []

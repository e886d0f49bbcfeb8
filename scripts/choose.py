"""Choose a candidate of each study, and write it into config/studies.lock.yaml.

It prints the head of the table, which candidate wins and how sure that is. A model with
`merge: {study: NAME}` is made by that merge from then on. Where the study has several rounds, it
writes who stays for the next one. `--config model=NAME`: only this study; with `pick=ID` the
candidate of that name is taken, whatever was measured. It stays the winner until its study is named
again. Exit status 1 if a study is not measured, or its candidates are not comparable.
"""

from collections.abc import Iterator

from lib.errors import UserError, program
from lib.run.answers import columns, open_session, parser
from lib.run.session import Session
from lib.run.studies import outcome_now
from lib.studies import lock, words
from lib.studies.grid import Candidate
from lib.studies.lock import LOCK_FILE, Chosen, Winner
from lib.studies.outcome import Outcome
from lib.units import count

SHOWN = 8  # candidates


def main() -> int:
    session = open_session(parser(__doc__).parse_args().config)
    names = [name for name in session.graph.names if name in session.config.studies]
    if not names:
        waiting = [name for name in session.config.studies if name in session.config.waiting]
        told = [f"{session.graph.why_waiting(name)}." for name in waiting]
        raise UserError(*(told or ["this config has no studies"]))
    if session.options.pick and len(names) > 1:
        raise UserError("pick: say of which study: --config model=NAME pick=ID")
    chosen, is_done = lock.read(), True
    for name in names:
        before = chosen.get(name, Chosen())
        if session.options.pick:
            chosen[name] = picked(session, name, before)
            print(f"{name}: {session.options.pick} is chosen, as you say.")
        else:
            outcome = outcome_now(session.plan, name)
            print("\n".join(said(session, name, outcome)))
            is_done = is_done and bool(outcome.rounds) and not outcome.is_stuck
            chosen[name] = entry(session, name, outcome, before)
            if stays(session, name, before):
                chosen[name].winner = before.winner
                print(kept(name, outcome, before.winner))
        for line in changed(name, before, chosen[name]):
            print(line)
    if any(each != Chosen() for each in chosen.values()):
        lock.write(chosen)
    return 0 if is_done else 1


def said(session: Session, name: str, outcome: Outcome) -> list[str]:
    """The lines on what came out of a study."""
    if not outcome.rounds and outcome.is_stuck:
        return [f"{name}: {words.unlike(outcome)}"]
    if not outcome.rounds:
        return [f"{name}: it is not measured yet: `snakemake --cores all` does that."]
    lines = [f"{name}:", *head(outcome), *(f"  {line}" for line in words.sentences(outcome))]
    if not outcome.last and not outcome.is_stuck:
        chunks = session.config.studies[name].each_round[len(outcome.rounds)].chunks
        on = f" on {count(chunks, 'chunk')}" if chunks else ""
        lines.append(f"  `snakemake --cores all` measures them{on}; then `snakemake choose` again.")
    return lines


def head(outcome: Outcome) -> list[str]:
    """The first lines of the table of the round that was measured last."""
    each = outcome.rounds[-1]
    names = [figure.name for figure in each.figures]
    values, rows = each.values(), [("", "candidate", *names, "wins")]
    for place, candidate in enumerate(each.in_order[:SHOWN], 1):
        cells = (words.figure(*values[candidate][name]) for name in names)
        wins = each.decision.wins[each.ids.index(candidate)] if each.decision else None
        rows.append((f"{place}", candidate, *cells, "" if wins is None else f"{100 * wins:.0f}%"))
    lines = columns(rows, right=(0, *range(2, len(rows[0]))))
    more = len(each.ids) - SHOWN
    return [
        *lines,
        *([f"  … and {more} more: results/studies/{outcome.study}/study.html"] * (more > 0)),
    ]


def entry(session: Session, name: str, outcome: Outcome, before: Chosen) -> Chosen:
    """What the lock says of a study from now on. Until it is decided, the winner stays."""
    rounds = [{"chunks": each.chunks, "kept": each.kept} for each in outcome.rounds if each.kept]
    if not outcome.winner:
        return Chosen(rounds or before.rounds, before.winner)
    return Chosen(rounds, winner_of(candidates(session, name)[outcome.winner]))


def stays(session: Session, name: str, before: Chosen) -> bool:
    """Whether somebody has picked the winner, and this run does not name the study."""
    return bool(before.winner and before.winner.picked) and name not in session.options.model


def kept(name: str, outcome: Outcome, winner: Winner) -> str:
    """The line on a winner that stays because somebody picked it."""
    other = outcome.winner if outcome.winner != winner.candidate else None
    takes = f" takes {other}" if other else " chooses by what is measured"
    how = f"`snakemake choose --config model={name}`{takes}"
    return f"  {winner.candidate} was picked and stays the winner; {how}."


def picked(session: Session, name: str, before: Chosen) -> Chosen:
    """The entry for a candidate that somebody names. Raises UserError if it is none."""
    known = candidates(session, name)
    if session.options.pick not in known:
        raise UserError(
            f"pick: {session.options.pick} is no candidate of {name} ({', '.join(known)})"
        )
    winner = winner_of(known[session.options.pick])
    winner.picked = True
    return Chosen(before.rounds, winner)


def candidates(session: Session, name: str) -> dict[str, Candidate]:
    """The candidates of a study by id."""
    return {each.id: each for each in session.config.studies[name].candidates}


def winner_of(candidate: Candidate) -> Winner:
    """A candidate as the lock has it."""
    return Winner(candidate.id, candidate.values, candidate.random_seed, candidate.merge)


def changed(name: str, before: Chosen, now: Chosen) -> Iterator[str]:
    """Yield a line on what the lock says that it did not say before."""
    if now.winner and now.winner != before.winner:
        was = f", in place of {before.winner.candidate}" if before.winner else ""
        yield f"  {LOCK_FILE} has {now.winner.candidate} as the winner of {name}{was}: commit it."
    elif now.rounds != before.rounds:
        yield f"  {LOCK_FILE} has who stays: commit it."


if __name__ == "__main__":
    program(main)

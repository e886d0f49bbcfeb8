"""How much of each model is there, and what is being built now: from the results directory alone."""

import os
import time
from collections import Counter
from pathlib import Path

from ask_orphans import held
from lib.planning.staleness import State
from lib.run.answers import columns, open_session, parser
from lib.run.session import Session
from lib.units import count, human

KINDS = {
    "merge": ("merge",),
    "gguf": ("convert", "source_gguf"),
    "imatrix": ("imatrix", "imatrix_file"),
    "quants": ("quantize",),
    "labelled": ("label",),
    "shards": ("split",),
    "exl2": ("exl2_measure", "exl2_measurement_file", "exl2_quantize"),
    "evaluated": ("evaluate", "exl2_evaluate"),
    "report": ("report", "card", "card_of_kind"),
}


def main() -> None:
    session = open_session(parser(__doc__).parse_args().config)
    print("\n".join([*table(session), *running()]))


def table(session: Session) -> list[str]:
    """A line a model: of each kind how many are as the config wants them, of how many."""
    rows, there, declared, size = [], 0, 0, 0
    for name in session.graph.names:
        states: Counter = Counter()
        reclaimed: Counter = Counter()
        made_of_model = session.graph.of(name).values()
        for artifact in made_of_model:
            state = session.plan.state(artifact)
            states[artifact.rule, state] += 1
            record = session.plan.record(artifact)
            if state is State.ABSENT and record and record.fits(artifact.digest):
                reclaimed[artifact.rule] += 1
            if state is State.FRESH and record and not record.is_link:
                size += record.bytes
        cells = []
        for rules in KINDS.values():
            all_, done, gone = 0, 0, 0
            for rule in rules:
                all_ += sum(states[rule, state] for state in State)
                done += states[rule, State.FRESH] + reclaimed[rule]
                gone += reclaimed[rule]
            there, declared = there + done, declared + all_
            cells.append("" if not all_ else f"{done}/{all_}" + ("*" if gone else ""))
        if made_of_model:
            rows.append((name, *cells))
    used = [i for i in range(1, len(KINDS) + 1) if any(row[i] for row in rows)]
    head = ("model", *KINDS)
    lines = columns(
        [tuple(row[i] for i in (0, *used)) for row in (head, *rows)],
        right=range(1, len(KINDS) + 1),
        indent="",
    )
    lines += [
        "",
        f"as the config wants them: {there} of {count(declared, 'artifact')}, {human(size)}",
    ]
    if any(cell.endswith("*") for row in rows for cell in row[1:]):
        lines.append("* made, and deleted since: an intermediate that nothing needs now")
    return lines


def running() -> list[str]:
    """What is being built now: the stages whose lock is held."""
    rows = []
    for top in ("results", "resources"):
        for folder, names, _ in os.walk(top):
            for name in [name for name in names if name.endswith(".building")]:
                names.remove(name)
                stage = Path(folder, name)
                if held(stage / "lock"):
                    rows.append(row(stage))
    return ["", "being built now:", *columns(rows, right=(1, 2))] if rows else []


def row(stage: Path) -> tuple[str, str, str, str]:
    """The artifact, how much of it there is, for how long, its log."""
    path = str(stage.with_name(stage.name[1:].removesuffix(".building")))
    files = [file for file in stage.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files if file.name != ".inputs.json")
    began = min(
        (file.stat().st_ctime for file in files if file.name == ".inputs.json"), default=time.time()
    )
    return (
        path,
        human(size),
        f"{time.time() - began:.0f} s",
        f"logs/{path.removeprefix('results/')}.log",
    )


if __name__ == "__main__":
    main()

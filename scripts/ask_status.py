"""Show how much of each model is built, and what is being built now.

Reads the config and what lies under results/ and resources/, so it works with or without a run, on
any machine that sees these directories.
"""

import time
from collections import Counter
from pathlib import Path

from lib.errors import program
from lib.planning.staleness import State
from lib.record.layout import artifact_of, building_directories, log_file
from lib.run.answers import columns, open_session, parser
from lib.run.hold import held
from lib.run.session import Session
from lib.run.studies import notes
from lib.stages.registry import STAGES
from lib.units import count, human

COLUMNS = list(dict.fromkeys(stage.column for stage in STAGES.values() if stage.column))


def main() -> None:
    session = open_session(parser(__doc__).parse_args().config)
    print("\n".join([*table(session), *running(), *notes(session.plan)]))


def table(session: Session) -> list[str]:
    """The table's lines, a line for each model.

    A cell "3/5" says that 3 of the 5 artifacts of this kind are there and fresh. A star says that
    some of them are intermediates that were built, used and deleted since: these count as built.
    """
    rows, there, declared, size = [("model", *COLUMNS)], 0, 0, 0
    for name in session.graph.names:
        all_, done, gone = Counter(), Counter(), Counter()
        for artifact in session.graph.artifacts(name).values():
            column = STAGES[artifact.rule].column
            state, record = session.plan.state(artifact), session.plan.record(artifact)
            if artifact.on_demand and state is not State.FRESH:
                continue  # `publish_plan` makes it
            all_[column] += 1
            reclaimed = state is State.ABSENT and record and record.fits(artifact.digest)
            gone[column] += bool(reclaimed)
            done[column] += bool(reclaimed or state is State.FRESH)
            if state is State.FRESH and record and not record.is_link:
                size += record.bytes
        if all_:
            stars = {column: "*" if gone[column] else "" for column in COLUMNS}
            cells = (f"{done[c]}/{all_[c]}{stars[c]}" if all_[c] else "" for c in COLUMNS)
            rows.append((name, *cells))
        there += sum(done[column] for column in COLUMNS)
        declared += sum(all_[column] for column in COLUMNS)
    names, *counts = zip(*rows, strict=True)
    used = [cells for cells in counts if any(cells[1:])]
    lines = columns(zip(names, *used, strict=True), right=range(1, len(used) + 1), indent="")
    text = f"as the config wants them: {there} of {count(declared, 'artifact')}, {human(size)}"
    lines += ["", text]
    if any(cell.endswith("*") for cells in used for cell in cells):
        lines.append("* made, and deleted since: what nothing needs now, or lies elsewhere (cold)")
    return lines


def running() -> list[str]:
    """The lines on artifacts that are being built now: those that a step holds."""
    rows = [row(place) for place in building_directories("results", "resources") if held(place)]
    return ["", "being built now:", *columns(rows, right=(1, 2))] if rows else []


def row(building: Path) -> tuple[str, str, str, str]:
    """Cells of an artifact that is being built: path, size so far, seconds since it began, log."""
    path = artifact_of(building)
    files = [file for file in building.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files if file.name != ".inputs.json")
    now = time.time()
    begun = (file.stat().st_ctime for file in files if file.name == ".inputs.json")
    seconds = f"{now - min(begun, default=now):.0f} s"
    return path, human(size), seconds, log_file(path)


if __name__ == "__main__":
    program(main)

"""What is done before the first job of a run, and after its last."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from lib.errors import UserError, plainly
from lib.forecast.machine import keep_to
from lib.forecast.schedule import Job
from lib.planning.graph import Graph
from lib.planning.staleness import Plan
from lib.record.artifact import Artifact
from lib.record.layout import GALLERY, LOOKS
from lib.run import build, studies
from lib.run.console import summary
from lib.run.hold import clear_abandoned, hold_directory
from lib.run.requests import config_file
from lib.run.session import ANSWERS, Session
from lib.stages.cold import nowhere
from lib.stages.registry import FAMILIES, STAGES
from lib.store import notes
from lib.units import count, duration, human, is_are

# Targets that do something else than build, and say so themselves.
ACTIONS = {"clean_orphans", "verify_rebuild", "publish", "speed"}
LONG_S = 60  # of a build from which it is told how to watch it
PREFLIGHT = Path(__file__).parents[2] / "ask_preflight.py"


@plainly
def begin(session: Session, local: bool) -> None:
    """Before the first job: hold the directory, run the preflight, check the disk, take the cores.

    Leaves the plan of a build for `snakemake live`, and for reports how families are shown. local:
    whether the jobs run on this machine. Ends Snakemake with a message if the build should not
    start.
    """
    if session.asked_only(ANSWERS):
        return
    hold_directory()
    clear_abandoned()
    build.forget()
    notes.begin()
    if not session.options.ignore_preflight:
        preflight(session, local)
    if session.building:
        # Imported for builds only: a dry run does without.
        from lib.forecast.outlook import forecast
        from lib.report.looks import Looks

        LOOKS.write_text(Looks.of(FAMILIES.values()).to_json(), encoding="utf-8")
        building = session.taking.builds(session.building.values())
        taken = session.taking.sizes(building)
        outlook = forecast(session.graph, building, session.machine, taken, session.cooling)
        if impossible := outlook.impossible():
            raise UserError(*impossible)
        if not outlook.fits and not session.options.ignore_disk:
            raise UserError(outlook.refusal(session.config.reclaim))
        build.begin(building, outlook.jobs, session.machine)
        watch_for_hangs(session, outlook.jobs)
        if outlook.course.seconds >= LONG_S:
            took = f"{count(len(building), 'artifact')}, about {duration(outlook.course.seconds)}"
            print(f"{took}; `snakemake live` in another terminal shows how far it is")
    if session.machine.cores:
        keep_to(session.machine.cores)


def watch_for_hangs(session: Session, jobs: Sequence[Job]) -> None:
    """Tell of steps that make no progress, as long as this process runs."""
    from lib.run.quiet import Quiet

    minutes = session.options.end_hung
    Quiet(jobs, minutes and 60 * minutes).start()


def preflight(session: Session, local: bool) -> None:
    """Run the preflight if a step of the build is long. Raises UserError with its findings."""
    built = (a for a in session.building.values() if session.taken(a) is None)
    long = (a for a in built if STAGES[a.rule].is_long)
    models = sorted({artifact.model for artifact in long})
    if not models:
        return
    command = [sys.executable, str(PREFLIGHT), "--config", config_file(session)]
    command += ["--models", ",".join(models), "--no-publish", *([] if local else ["--cluster"])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
        hint = "(--config ignore_preflight=true builds all the same)"
        raise UserError(*lines, done.stderr.strip(), hint)


def end(session: Session) -> None:
    """After the last job: write the gallery, print what is there and how much is still stale."""
    cancel_timers()
    note_end(session, "done")
    if session.asked_only(ANSWERS | ACTIONS):
        return
    renew_gallery(session)
    print(summary(session.graph))
    told_of_store()
    plan = Plan(session.graph)
    stale = plan.stale(session.graph)
    remove_left(session.graph, stale)
    if left := len(stale):
        # Not asked for, or made from an input that came out with other bytes than before.
        which = f"{count(left, 'artifact')} {is_are(left)}"
        print(f"{which} not up to date: `snakemake why` says why.")
    for line in [*nowhere(session.config), *studies.notes(plan)]:
        print(line)


def failed(session: Session) -> None:
    """After a run that failed: what it has built until then is in the gallery."""
    note_end(session, "failed")
    if session.building:
        renew_gallery(session)
        told_of_store()


def remove_left(graph: Graph, stale: Iterable[Artifact]) -> None:
    """Remove temporary artifacts that nothing stale needs: Snakemake was killed before it did.

    Their records stay.
    """
    needed = {up.path for artifact in stale for up in artifact.inputs.values()}
    for artifact in graph:
        if artifact.temporary and artifact.path not in needed and os.path.lexists(artifact.path):
            if artifact.directory:
                shutil.rmtree(artifact.path)
            else:
                os.unlink(artifact.path)
            print(f"removed {artifact.path}: nothing needs it any more")


def told_of_store() -> None:
    """Say what this run has taken from the store and put there; no line if that is nothing."""
    told = []
    for verb, what in ((notes.TAKEN, "taken from it"), (notes.PUT, "put there")):
        number, size = notes.summary(verb)
        if number:
            told.append(f"{count(number, 'artifact')}, {human(size)}, {what}")
    if told:
        print(f"  store: {'; '.join(told)}")


def note_end(session: Session, outcome: str) -> None:
    """Write how the build ended, "done" or "failed", for `snakemake live`."""
    if not session.asked_only(ANSWERS):
        build.end(outcome)


def renew_gallery(session: Session) -> None:
    """Write the gallery after a build, which is no worse if that fails."""
    try:
        write_gallery(session)
    except (UserError, OSError) as error:
        print(f"{GALLERY} was not written: {error}")


def write_gallery(session: Session) -> None:
    """Write the page of all models and studies of the config (lib/report/gallery.py).

    A run that is about some of them only shows the others if they have a report. Raises UserError.
    """
    # Imported for builds only: a dry run does without.
    from lib.report import gallery
    from lib.report.looks import Looks

    declared = {a.model for a in session.graph if STAGES[a.rule].column == "report"}
    names = [n for n in session.config.models if n in declared or gallery.table_of(n).exists()]
    studies = [n for n in session.config.studies if n in declared or gallery.page_of(n).exists()]
    gallery.write(names, Looks.of(FAMILIES.values()), GALLERY, studies)


def cancel_timers() -> None:
    """Cancel Snakemake's timers, which would keep a run that has ended for up to a second.

    They are to wake its scheduler, which has ended (9.27, `_schedule_reevalutation`).
    """
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()

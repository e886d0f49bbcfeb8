"""Show what a build will make, before it runs: files, sizes, expected times, peak disk usage."""

import textwrap
from heapq import nlargest
from pathlib import PurePosixPath

from lib.errors import program
from lib.forecast.machine import Machine
from lib.forecast.outlook import Outlook, forecast
from lib.formats.fallbacks import Fallbacks, sentence
from lib.planning.publishing import license_note
from lib.record.artifact import Artifact
from lib.record.layout import home
from lib.run.answers import chosen, columns, open_session, parser, short, wrapped
from lib.run.session import Session
from lib.stages.cold import nowhere
from lib.stages.registry import STAGES
from lib.units import count, duration, human

MARKS = {"tensors": "", "dry run": "", "made": "", "lock": "~", "last time": "", "guess": "~"}
START_S = 4  # of Snakemake, before the first job and after the last
LONGEST = 8  # steps of the critical path that are named
SHOWN = 100  # lines of the table, beyond which models are one line each


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--machine", required=True, help="JSON [cores, [rules on a GPU], MiB of GPU memory, nodes]"
    )
    arguments = options.parse_args()
    session = open_session(arguments.config)
    building = session.taking.builds(chosen(session))
    session.contents.save()
    if not building:
        print(
            "Nothing is to be built: everything that the config declares is there as it is wanted."
        )
        return
    machine = Machine.read(arguments.machine)
    taken = session.taking.sizes(building)
    outlook = forecast(session.graph, building, machine, taken, session.cooling)
    said = [
        *table(outlook),
        "",
        *totals(outlook),
        *store(session, outlook),
        *nowhere(session.config),
        *times(outlook, machine),
        *fallbacks(outlook),
    ]
    said += licenses(session, outlook)
    print("\n".join(said))
    if not outlook.fits:
        print(f"\n{outlook.refusal(session.config.reclaim)}")


def table(outlook: Outlook) -> list[str]:
    """A line for each file, under its model; a line for each model where there are many files."""
    groups: dict[str, list[Artifact]] = {}
    for artifact in outlook.artifacts:
        place = home(artifact.path) if artifact.model else "shared"
        groups.setdefault(place, []).append(artifact)
    rows = []
    for place, group in groups.items():
        if len(outlook.artifacts) > SHOWN and place != "shared":
            size = human(sum(outlook.sizes[artifact.path].bytes for artifact in group))
            rows.append((place, count(len(group), "file"), size, spent(outlook, group)))
        else:
            rows += [(place, "", "", ""), *(row(outlook, artifact) for artifact in group)]
    return columns([("what will be made", "step", "size", "time"), *rows], right=(2, 3), indent="")


def row(outlook: Outlook, artifact: Artifact) -> tuple[str, ...]:
    """An artifact's cells: name (with * if it is temporary), rule, size, time."""
    size = outlook.sizes[artifact.path]
    text = MARKS[size.source] + human(size.bytes)
    if not size.bytes and STAGES[artifact.rule].links(artifact):
        text = "links" if artifact.directory and artifact.links else "link"
    name = f"  {short(artifact)}" + ("  *" if artifact.temporary else "")
    step = "from the store" if artifact.path in outlook.taken else artifact.rule
    return name, step, text, spent(outlook, [artifact])


def totals(outlook: Outlook) -> list[str]:
    """The lines below the table: the sums of files and disk."""
    sizes, peak = outlook.sizes.values(), outlook.course
    about = " (~: not known exactly)" if any(MARKS[size.source] for size in sizes) else ""
    lines = [f"{count(len(sizes), 'artifact')}, {human(sum(size.bytes for size in sizes))}{about}"]
    temporary = [
        outlook.sizes[artifact.path].bytes for artifact in outlook.artifacts if artifact.temporary
    ]
    if temporary:
        lines.append(
            f"*     {human(sum(temporary))} of them are deleted as soon as nothing needs them"
        )
    end = f"{human(abs(peak.after))} {'more' if peak.after >= 0 else 'less'} than now in the end"
    fits = "it fits" if outlook.fits else "IT DOES NOT FIT"
    lines += [f"disk  {human(peak.bytes)} more than now at the fullest, while {peak.at} is made;"]
    lines += [f"      {end}; {human(outlook.free)} are free: {fits}"]
    return lines


def store(session: Session, outlook: Outlook) -> list[str]:
    """The line on what is taken from the store; no line if that is nothing."""
    if not outlook.taken:
        return []
    what = f"{count(len(outlook.taken), 'artifact')}, {human(sum(outlook.taken.values()))}"
    places = {session.taking.where(a): None for a in outlook.artifacts if a.path in outlook.taken}
    return [f"store {what}: taken from {' and '.join(places)} and not built"]


def times(outlook: Outlook, machine: Machine) -> list[str]:
    """The lines on time: of the whole build, and of the steps that decide it."""
    course, cores = outlook.course, count(machine.all_cores, "core")
    guessed = {a.rule for a in outlook.artifacts if not outlook.work[a.path].known}
    told = "going by earlier runs"
    if guessed:
        rest = "" if len(guessed) == len({a.rule for a in outlook.artifacts}) else ", the rest by"
        told = f"~: by rates measured elsewhere{rest}{' earlier runs' if rest else ''}"
    lines = [f"time  about {duration(START_S + course.seconds)} on {cores} ({told})"]
    names = {artifact.path: short(artifact) for artifact in outlook.artifacts}
    longest = nlargest(LONGEST, course.critical, key=lambda step: step[1])
    path, seconds = longest[0]
    least = max(seconds / 20, longest[-1][1])
    named = [f"{names[step]} {duration(took)}" for step, took in course.critical if took >= least]
    first, *others = named[:LONGEST]
    lines += wrapped([f"      of which, one after the other: {first}", *others], "", 98)
    width = outlook.work[path].width
    if seconds >= course.seconds / 3 and width < machine.all_cores / 2:
        lines.append(f"      {names[path]} decides it, and uses {width:.1f} of {cores}")
    return lines


def fallbacks(outlook: Outlook) -> list[str]:
    """A sentence for each model whose quants will have tensors of other types than asked for."""
    models: dict[str, dict[str, Fallbacks | None]] = {}
    for artifact in outlook.artifacts:
        if artifact.path in outlook.taken:
            continue
        if found := STAGES[artifact.rule].fallbacks(artifact, outlook.predicted):
            name = PurePosixPath(artifact.path).stem.removeprefix(f"{artifact.model}-")
            models.setdefault(artifact.model, {})[name] = found
    said = {model: sentence(quants) for model, quants in models.items()}
    return [line for model, text in said.items() for line in noted("types", model, text)]


def licenses(session: Session, outlook: Outlook) -> list[str]:
    """A note for each model that comes from models of different licenses: a person must judge."""
    names = dict.fromkeys(artifact.model for artifact in outlook.artifacts if artifact.model)
    notes = {name: license_note(session.config, session.graph.lock, name) for name in names}
    return [line for name, text in notes.items() for line in noted("license", name, text)]


def noted(label: str, model: str, text: str) -> list[str]:
    """A sentence on a model, wrapped into lines; no line if `text` is empty."""
    line = f"{label} {model}: {text}" if text else ""
    return textwrap.wrap(line, width=98, subsequent_indent=" " * 6, break_on_hyphens=False)


def spent(outlook: Outlook, group: list[Artifact]) -> str:
    """The time that a group takes, one after the other, in words; ~ if rates alone tell it."""
    work = [outlook.work[artifact.path] for artifact in group]
    mark = "" if all(part.known for part in work) else "~"
    return mark + duration(sum(part.seconds for part in work))


if __name__ == "__main__":
    program(main)

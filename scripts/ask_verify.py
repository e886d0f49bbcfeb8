"""Hash every artifact again and compare it with its record.

Reads everything under results/ and resources/ that has a record, in parallel. Reports files that
are truncated, edited, swapped, missing or without a record, and the command that mends each fault.
Exit status 1 if there is a fault.
"""

import os
import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lib.errors import program
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.digests import sha256_of
from lib.record.layout import SNAKEMAKE_MARK, home
from lib.record.unrecorded import recorded, unrecorded
from lib.run.answers import columns, open_session, parser
from lib.run.session import Session
from lib.store.entry import Refused
from lib.store.places import Unreachable
from lib.store.store import Settings, Store
from lib.store.visit import sees
from lib.units import count, human

UNRECORDED = "unrecorded: no record says how it was made"
# What mends a fault: (command, what it does), in the order in which to run them. The arguments of
# the command are paths of artifacts.
FORCE = (
    "snakemake --cores all --force",
    "builds them again by force: a run checks sizes and recipes, not every byte.",
)
LINK = (
    "snakemake --cores all",
    "makes the link again once its file is back in its place; a file of the hub is fetched.",
)
BUILD = (
    "snakemake --cores all",
    "builds the stale artifacts again; the files that are there are replaced.",
)
CLEAN = (
    "snakemake clean_orphans",
    "shows what the config no longer declares, and with --config yes=true deletes it.",
)
REMOVE = ("rm -r", "or move it away: Quantmill did not record it, and leaves it alone.")
REMEDIES = (FORCE, LINK, BUILD, CLEAN, REMOVE)


@dataclass(frozen=True)
class Member:
    """One file of an artifact, with the size and the sha256 (hex) that the record says."""

    path: str
    bytes: int
    sha256: str
    artifact: str


@dataclass(frozen=True, order=True)
class Fault:
    """What is wrong with a file, and what mends it.

    remedy: one of REMEDIES. given: the arguments of its command.
    """

    path: str
    text: str
    remedy: tuple[str, str]
    given: tuple[str, ...]


def main() -> int | None:
    session = open_session(parser(__doc__).parse_args().config)
    records = list(records_on_disk(session))
    faults: list[Fault] = []
    members: list[Member] = []
    for record in records:
        found, wrong = look_into(session, record)
        members += found
        faults += wrong
    faults += hashed(members, records)
    if not session.options.model:
        faults += undone(session)
        strangers = {str(path) for path in unrecorded()} - {fault.path for fault in faults}
        faults += [Fault(path, UNRECORDED, REMOVE, (path,)) for path in strangers]
    size = human(sum(member.bytes for member in members))
    if faults:
        faults = sorted({as_declared(session, fault) for fault in faults})
        print(f"{count(len(faults), 'fault')} in {count(len(records), 'artifact')} ({size}):")
        print("\n".join(columns((fault.path, fault.text) for fault in faults)))
        print("\n".join(remedies(faults)))
        return 1
    files = count(len(members), "file")
    if len(records) == 1:
        print(f"The 1 artifact ({files}, {size}) is what its record says.")
    else:
        print(f"All {len(records)} artifacts ({files}, {size}) are what their records say.")
    return None


def as_declared(session: Session, fault: Fault) -> Fault:
    """The fault, with another remedy if the config no longer declares the artifact.

    No run would build such an artifact again, so it can only be deleted.
    """
    (path,) = fault.given
    if fault.remedy is REMOVE or session.graph.find(path):
        return fault
    if recipes.read(path):
        return replace(fault, remedy=CLEAN, given=())
    there = (name for name in (path, recipes.path_of(path)) if os.path.lexists(name))
    return replace(fault, remedy=REMOVE, given=tuple(there))


def remedies(faults: list[Fault]) -> Iterator[str]:
    """The lines that say what to do: for each remedy its command, then what it does."""
    for remedy in REMEDIES:
        mended = [fault for fault in faults if fault.remedy == remedy]
        given = dict.fromkeys(path for fault in mended for path in fault.given)
        if mended:
            yield ""
            command, what_it_does = remedy
            yield from as_command([command, *map(shlex.quote, given)])
            yield f"    {what_it_does}"
    if any(fault.remedy in (FORCE, LINK, BUILD) for fault in faults):
        yield "\nUse the same --directory and --configfile as now; --configfile comes last."


def as_command(words: list[str]) -> list[str]:
    """A command that can be copied: one line if it is short, else a line for each word."""
    line = f"  {' '.join(words)}"
    if len(line) < 98:
        return [line]
    return [f"  {words[0]} \\", *(f"      {word} \\" for word in words[1:-1]), f"      {words[-1]}"]


def records_on_disk(session: Session) -> Iterator[recipes.Record]:
    """The records on disk; with --config model=… only those of the chosen models.

    A record that cannot be read is given with -1 bytes.
    """
    tops = ["results", "resources"]
    if session.options.model:
        tops = list({home(artifact.path): None for artifact in session.graph if artifact.model})
    for path in recorded(*tops):
        yield recipes.read(path) or recipes.Record(path, {}, "", -1, "")


def look_into(session: Session, record: recipes.Record) -> tuple[list[Member], list[Fault]]:
    """(files of an artifact that are there in the right size, faults of the others).

    The files are yet to be hashed. Files that links lead to belong to others, and are not. A record
    that cannot be read, or was edited, is a fault too.
    """
    path, found, faults = Path(record.artifact), [], []

    def fault(name: str | Path, text: str, remedy: tuple[str, str] = BUILD) -> None:
        faults.append(Fault(str(name), text, remedy, (record.artifact,)))

    if record.bytes < 0:
        fault(path, "record damaged, or another artifact's")
        return found, faults
    if recipes.digest(record.recipe) != record.digest:
        fault(path, "record edited: its digest does not fit its recipe", FORCE)
    if not os.path.lexists(path):
        made = session.graph.find(record.artifact)
        if place := cold.place_of(record.artifact, record):
            if why := lost(record, place):
                fault(path, f"cold, and {why}")
        elif made is None or not made.intermediate:
            fault(path, "missing")
        return found, faults
    links = [path] if path.is_symlink() and record.is_link else []
    if record.files and not any(sha for _, sha in record.files.values()):
        links = [path / name for name in record.files]
    if links:  # the files that they lead to are not Quantmill's
        for link in links:
            if not link.exists():
                fault(link, "missing: the link leads nowhere", LINK)
        return found, faults
    wanted = {str(path): (record.bytes, record.sha256)}
    if path.is_dir():
        wanted = {str(path / name): (size, sha) for name, (size, sha) in record.files.items()}
        there = {
            str(f)
            for f in path.rglob("*")
            if (f.is_symlink() or f.is_file()) and f.name != SNAKEMAKE_MARK
        }
        faults += [
            Fault(name, "unrecorded: it was not made with the rest", REMOVE, (name,))
            for name in there - wanted.keys()
        ]
    for name, (size, sha) in wanted.items():
        if not os.path.exists(name):
            fault(name, "missing")
        elif (actual := os.stat(name).st_size) < size:
            fault(name, f"truncated: {actual} of {size} bytes")
        elif actual > size:
            fault(name, f"edited: {actual} bytes, {size} were made")
        else:
            found.append(Member(name, size, sha, record.artifact))
    return found, faults


def lost(record: recipes.Record, place: dict[str, Any]) -> str | None:
    """Why the place of a cold artifact no longer has its bytes, in words; None: it has them."""
    if "hub" in place:
        from lib.hub.cold import lost as lost_on_hub  # takes a second

        if (why := lost_on_hub(place["hub"], record)) is None or "store" not in place:
            return why
    settings = Settings.of_environment() or Settings(place["store"])  # from where it is taken
    where = settings.location
    try:
        return None if sees(Store(settings), record) else f"{where} has it no longer"
    except (Unreachable, Refused) as error:
        return f"in {where}: {error}"


def hashed(members: list[Member], records: list[recipes.Record]) -> Iterator[Fault]:
    """Faults of the files that have the right size and another sha256."""
    whose = {record.sha256: record.artifact for record in records if record.sha256}
    whose |= {member.sha256: member.path for member in members}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda member: sha256_of(member.path), members)
        for member, sha in zip(members, found, strict=True):
            if sha != member.sha256:
                text = "edited: other bytes of the same size"
                if other := whose.get(sha):
                    text = f"swapped: these are the bytes of {other}"
                yield Fault(member.path, text, FORCE, (member.artifact,))


def undone(session: Session) -> Iterator[Fault]:
    """Faults of artifacts that the config declares and that are there without a record."""
    for made in session.graph:
        for path in made.outputs:
            if os.path.lexists(path) and not os.path.exists(recipes.path_of(path)):
                yield Fault(path, UNRECORDED, BUILD, (made.path,))


if __name__ == "__main__":
    program(main)

"""Hash every artifact again and hold it against its record: what is truncated, edited, swapped, missing, unrecorded.

Everything under results/ and resources/ that has a record is read, in parallel. Exit status 1 if anything is wrong.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lib import recipe as recipes
from lib.answers import columns, open_session, parser
from lib.session import Session
from lib.units import human
from orphans import unknown

SNAKEMAKE_MARK = ".snakemake_timestamp"


@dataclass(frozen=True)
class Member:
    """One file of an artifact, and what the record says of it."""

    path: str
    bytes: int
    sha256: str


def main() -> None:
    session = open_session(parser(__doc__).parse_args().config)
    records = list(recorded(session))
    faults: list[tuple[str, str]] = []
    members: list[Member] = []
    for record in records:
        faults += [(record.artifact, text) for text in inconsistent(record)]
        found, wrong = look_into(session, record)
        members += found
        faults += wrong
    faults += hashed(members, records)
    if not session.options.model:
        faults += [
            (str(path), "unrecorded: no record says how it was made") for path in unknown([])
        ]
        faults += undone(session)
    size = human(sum(member.bytes for member in members))
    if faults:
        print(f"{len(faults)} faults in {len(records)} artifacts ({size}):")
        print("\n".join(columns(sorted(set(faults)))))
        sys.exit(1)
    print(
        f"All {len(records)} artifacts ({len(members)} files, {size}) are what their records say."
    )


def recorded(session: Session) -> Iterator[recipes.Record]:
    """The records on disk; with --config model=… only those of these models."""
    tops = (
        [f"results/{name}" for name in session.graph.names]
        if session.options.model
        else ["results", "resources"]
    )
    for top in tops:
        for folder, names, files in os.walk(top):
            names[:] = [name for name in names if not name.endswith(".building")]
            for name in sorted(files):
                if name.endswith(recipes.SUFFIX):
                    path = str(Path(folder, name)).removesuffix(recipes.SUFFIX)
                    record = recipes.read(path)
                    yield record or recipes.Record(path, {}, "", -1, "")


def inconsistent(record: recipes.Record) -> list[str]:
    """What is wrong with a record itself."""
    if record.bytes < 0:
        return ["record damaged, or another artifact's"]
    if recipes.digest(record.recipe) != record.digest:
        return ["record edited: its digest does not fit its recipe"]
    return []


def look_into(
    session: Session, record: recipes.Record
) -> tuple[list[Member], list[tuple[str, str]]]:
    """The files of an artifact that are there in the right size, and what is wrong with the others."""
    path, found, faults = Path(record.artifact), [], []
    if record.bytes < 0:
        return found, faults
    if not os.path.lexists(path):
        made = session.graph.find(record.artifact)
        if made is None or not made.intermediate:
            faults.append((record.artifact, "missing"))
        return found, faults
    wanted = {str(path): (record.bytes, record.sha256)}
    links = bool(record.files) and not any(sha for _, sha in record.files.values())
    if links:  # where they lead is not Quantmill's
        gone = [name for name in record.files if not (path / name).exists()]
        return found, [(str(path / name), "missing: the link leads nowhere") for name in gone]
    if path.is_symlink() and record.is_link:
        gone = not path.exists()
        return found, [(str(path), "missing: the link leads nowhere")] * gone
    if path.is_dir():
        wanted = {str(path / name): (size, sha) for name, (size, sha) in record.files.items()}
        there = {
            str(f)
            for f in path.rglob("*")
            if (f.is_symlink() or f.is_file()) and f.name != SNAKEMAKE_MARK
        }
        faults += [
            (name, "unrecorded: it was not made with the rest")
            for name in sorted(there - wanted.keys())
        ]
    for name, (size, sha) in wanted.items():
        try:
            actual = os.stat(name).st_size
        except OSError:
            faults.append((name, "missing"))
            continue
        if actual < size:
            faults.append((name, f"truncated: {actual} of {size} bytes"))
        elif actual > size:
            faults.append((name, f"edited: {actual} bytes, {size} were made"))
        else:
            found.append(Member(name, size, sha))
    return found, faults


def hashed(members: list[Member], records: list[recipes.Record]) -> Iterator[tuple[str, str]]:
    """Files of the right size with other bytes."""
    whose = {record.sha256: record.artifact for record in records if record.sha256}
    whose |= {member.sha256: member.path for member in members}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for member, sha in zip(
            members, pool.map(lambda member: sha256(member.path), members), strict=True
        ):
            if sha != member.sha256:
                other = whose.get(sha)
                yield (
                    member.path,
                    f"swapped: these are the bytes of {other}"
                    if other
                    else "edited: other bytes of the same size",
                )


def undone(session: Session) -> Iterator[tuple[str, str]]:
    """What the config declares, and is there, but without a record."""
    for made in session.graph:
        for path in made.outputs:
            if os.path.lexists(path) and not os.path.exists(recipes.path_of(path)):
                yield path, "unrecorded: no record says how it was made"


def sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()

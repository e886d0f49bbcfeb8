"""Delete a finished file here once another place has its bytes, and leave a note of it.

    cool.py note MADE --wanted WANTED --output NOTE --notes NOTES
    cool.py delete MADE [--after PATH …]

`note` puts the artifact MADE into the store that the plan has offered (beside WANTED, the note's
wanted recipe), unless it is there, and reads it there, every byte; but not what it has just brought
into a bucket. In a run of `publish` it uploads it, too, if its gates hold, and looks for its sha256
in the listing of the repository. Writes NOTE and NOTES as lib/record/cold.py has them; if no place
has the bytes, NOTES says why. `delete` deletes MADE if its note says that a place has exactly these
bytes. Shards among --after (or their notes) that are a hard link to it become a symbolic one, which
leads somewhere again when it is back.
"""

import argparse
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from lib.errors import UserError, program
from lib.formats.gguf_file import read_gguf
from lib.planning import handoff
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.digests import flushed_digests
from lib.record.layout import RUN_STATE, building_directory
from lib.record.locks import NoLocks, lock
from lib.record.recipe import Record
from lib.record.wanted import WantedRecipe
from lib.store import notes, visit
from lib.store.entry import Entry, Refused
from lib.store.places import Unreachable
from lib.store.store import Settings, Store
from lib.units import human

LOCK = RUN_STATE / "upload.lock"
_held: list[IO] = []


class Kept(UserError):
    """A file stays here; says why. final: no attempt will end otherwise."""

    def __init__(self, why: str, final: bool = False):
        super().__init__(why)
        self.final = final


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    note = verbs.add_parser("note", help="see that a place has it, and write its note")
    note.add_argument("--wanted", type=Path, required=True, help="the note's wanted recipe")
    note.add_argument("--output", type=Path, required=True, help="the note to write, JSON")
    note.add_argument("--notes", type=Path, required=True, help="facts for its record, JSON")
    delete = verbs.add_parser("delete", help="delete it, if its note says that it may go")
    delete.add_argument("--after", nargs="*", default=[], help="what is made from it, or notes")
    for each in (note, delete):
        each.add_argument("made", help="the artifact, as its record names it")
    args = parser.parse_args()
    if (record := recipes.read(args.made)) is None:
        raise UserError(f"{args.made}: no recipe beside it, so it is not finished")
    if args.verb == "delete":
        remove(args.made, record, [path.removesuffix(cold.SUFFIX) for path in args.after])
        return
    try:
        if record.is_link:
            raise Kept("links need no room", final=True)
        facts = {"place": places(record, args.wanted), "record": asdict(record)}
    except Kept as kept:
        facts = {"kept": str(kept), "final": kept.final}
        if not record.is_link:
            say(f"kept    {args.made}: {kept}")
    args.notes.write_text(json.dumps(facts))
    args.output.write_text(json.dumps(described(record), indent=1) + "\n")


def places(record: Record, wanted: Path) -> dict[str, Any]:
    """The places that have exactly these bytes, as was seen now. Raises Kept if none has."""
    found, why = {}, []
    if upload := handoff.beside(wanted, handoff.UPLOAD):
        try:
            noted = upload.get("noted")
            found["hub"] = seen_on_hub(record, noted) if noted else uploaded(record, upload)
        except Kept as kept:
            why.append(kept)
    try:
        found["store"] = seen_in_store(record, wanted)
    except Kept as kept:
        why.append(kept)
    if not found:
        raise why[0]
    if upload and "hub" not in found:
        say(f"no hub  {record.artifact}: {why[0]}")
    return found


def seen_on_hub(record: Record, noted: dict[str, Any]) -> dict[str, Any]:
    """Where an artifact was on the hub before, and still is. Raises Kept."""
    from lib.hub.cold import lost  # takes a second

    if why := lost(noted, record):
        raise Kept(why)
    return noted


def uploaded(record: Record, upload: dict[str, Any]) -> dict[str, Any]:
    """Upload an artifact, unless the hub has it: where it is, as a note has it. Raises Kept.

    upload: as lib/planning/publishing.uploads gives it. Nothing is uploaded of a form whose gates
    do not hold.
    """
    from huggingface_hub import HfApi

    import publish  # takes a second, which who has a store does without
    from lib.hub import client as hub

    for problem in publish.form_problems(upload["form"]):
        raise Kept(f"it is not published: {problem}")
    made, repo, api = Path(record.artifact), upload["repo"], HfApi()
    known = publish.items(upload["file"], upload["max_file_size"], [])
    own = [item for item in known if item.sha256 and made in (item.path, *item.path.parents)]
    if {item.path for item in own} != {made / name for name in record.files or [""]}:
        raise Kept(f"it is not published as it is: {repo} has other files of this form")
    target = publish.Target(repo, upload["private"], [publish.Branch("main", own)])
    try:
        one_at_a_time()
        publish.compare(target, api)
        changed = {item.path: item.sha256 for item in target.changes}
        if flushed_digests(list(changed), {}) != changed:
            raise Kept("it has other bytes than its record says: `snakemake verify`")
        publish.push(target, api, large=0)
        commit = hub.persist(lambda: api.repo_info(repo)).sha
        there = hub.listing(api, repo, commit)
    except Kept:
        raise
    except Exception as error:
        raise Kept(hub.explain(error, repo, "model", api, write=True)) from None
    found = {item.name: there.get(item.name) for item in own}
    if not all(file and file.lfs for file in found.values()):
        raise Kept(f"the listing of {repo} does not tell its sha256")
    if not all(publish.is_same(item, found[item.name]) for item in own):
        raise Kept(f"{repo} has other bytes, although it was uploaded")
    files = {str(item.path.relative_to(made)).removeprefix("."): item.name for item in own}
    return {"repo": repo, "commit": commit, "files": files}


def one_at_a_time() -> None:
    """Wait until no other step of this directory uploads: two would commit upon the same commit."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    _held.append(LOCK.open("a"))  # until this process ends
    with suppress(NoLocks):
        lock(_held[0], wait=True)


def described(record: Record) -> dict:
    """The note of an artifact."""
    file = Path(record.artifact)
    said = {"quantmill_cold": cold.SCHEMA, "artifact": record.artifact}
    said |= {"sha256": record.sha256, "bytes": record.bytes}
    if file.suffix == ".gguf" and file.is_file():
        begins = min((tensor.offset for tensor in read_gguf(file).tensors), default=record.bytes)
        said["header"] = cold.header_of(file, begins)
    return said


def seen_in_store(record: Record, wanted: Path) -> str:
    """The location of the store that has exactly these bytes, as was seen now. Raises Kept."""
    offer, (_, digest) = handoff.offer(wanted), WantedRecipe.read(wanted).inputs[cold.MADE]
    if offer is None:
        raise Kept("no store that was reached takes it (docs/store.md)")
    entry = visit.entry_of(record, offer.behind) if record.digest == digest else None
    if entry is None:
        raise Kept("what was accepted as it is does not go into a store", final=True)
    try:
        store, refused = Store(offer.settings), None
        with suppress(Unreachable):  # it may only be read
            store.renew(record.digest)
        try:
            if visit.sees(store, record):
                return offer.settings.location
        except Refused as error:
            refused = error
        brought = put(store, entry, refused)
        if visit.sees(store, record, brought):
            return offer.settings.location
        raise Kept(f"what {store.shown} has of its recipe are other bytes")
    except Refused as error:
        raise Kept(f"{store.shown} has it, but {error}") from None
    except Unreachable as error:
        raise Kept(f"{offer.settings.location}: {error}") from None


def put(store: Store, entry: Entry, refused: Refused | None) -> bool:
    """Put an artifact into the store, and return whether all of its bytes were brought there.

    refused: why what is there is no good; then in its place. Raises Unreachable; `refused` where
    only signed entries count and this one would not be; Kept if the file here is not what its
    record says.
    """
    if refused and store.settings.key and not store.settings.sign:
        raise refused
    made = Path(entry.record.artifact)
    if not entry.is_at(made):
        raise Kept("it has other bytes than its record says: `snakemake verify`")
    brought = store.put(entry, made, again=refused is not None)
    notes.forgive(entry.record.digest)
    notes.done(notes.PUT, entry.record.digest, entry.record.bytes)
    return brought == entry.record.bytes


def remove(made: str, record: Record, after: list[str]) -> None:
    """Delete an artifact whose note says that another place has it. after: what is made from it."""
    note = recipes.read(cold.note_of(made))
    if note is None or note.inputs.get(cold.MADE) != record.sha256:
        return
    if not (place := note.notes.get("place")):
        return
    if "hub" not in place and not is_still_in(place["store"], record):
        raise UserError(
            f"{made}: {place['store']} had it, and no longer has, so it stays here. "
            "Run the same command again."
        )
    for path in (made, recipes.path_of(note.artifact)):  # what was renamed into place stays so
        flush(Path(path).parent)
    for linked in filter(None, map(recipes.read, after)):
        if linked.is_link and record.sha256 in linked.inputs.values():
            for name in linked.files:
                link(Path(linked.artifact, name), made)
    if Path(made).is_dir():
        aside = building_directory(made)
        aside.mkdir(exist_ok=True)
        os.replace(made, aside / "cold")
        shutil.rmtree(aside)
    else:
        os.unlink(made)
    where = filter(None, ((place.get("hub") or {}).get("repo"), place.get("store")))
    say(f"cold    {made}  {human(record.bytes)}, in {' and '.join(where)}")


def is_still_in(location: str, record: Record) -> bool:
    """Whether the store that was seen to have an artifact has not been pruned since."""
    try:
        entry = Store(Settings(location)).look(record.digest)
    except (Refused, Unreachable):
        return False
    return entry is not None and entry.contents == record.contents


def link(path: Path, made: str) -> None:
    """Make a link of another kind to a file symbolic."""
    if path.exists() and not path.is_symlink():
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.symlink_to(os.path.relpath(made, path.parent))
        os.replace(part, path)


def flush(folder: Path) -> None:
    """Have the names in a directory on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def say(line: str) -> None:
    """Write a line for people on stderr, in one piece: other steps write there, too."""
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    program(main)

"""A step's visits to the store: take an artifact instead of building it, put what was built.

What goes wrong in the store costs a line and never what was built.
"""

import os
from collections.abc import Callable
from pathlib import Path

from lib.record import recipe as recipes
from lib.record.layout import building_directory
from lib.record.recipe import Record
from lib.record.wanted import WantedRecipe
from lib.store import notes
from lib.store.entry import Entry, Refused
from lib.store.offer import Offer
from lib.store.places import Unreachable, why
from lib.store.store import Settings, Store, content_name

Say = Callable[[str], None]


def reach(settings: Settings, verb: str, say: Say) -> Store | None:
    """The store; None if it cannot be reached, or this run does without it.

    verb: notes.TAKEN or notes.PUT. say: prints a line for people.
    """
    if notes.is_off(verb):
        return None
    try:
        return Store(settings)
    except Unreachable as error:
        lose(settings, notes.TAKEN, error, say)
        return None


def lose(settings: Settings, verb: str, error: Exception, say: Say) -> None:
    """Do without the store for the rest of the run, said once. verb: notes.TAKEN or notes.PUT."""
    if notes.turn_off(verb):
        without = "this run goes on without it"
        if verb == notes.PUT:
            without = "what this run builds is not put there"
        say(f"store   {settings.location}: {why(error)}: {without}")


def take(
    wanted: WantedRecipe, offer: Offer, made: Path, inputs: dict[str, str] | None, say: Say
) -> tuple[Record, str] | None:
    """Make an artifact at `made` from the store's entry of its recipe; its record, and how.

    inputs: {role: sha256} of what it would be made from here; None if that is not here. None if
    there is no entry, it was made from other bytes, or it is refused, which is said.
    """
    if (store := reach(offer.settings, notes.TAKEN, say)) is None:
        return None
    try:
        entry = store.look(wanted.digest)
        if entry is None or notes.is_refused(entry):
            return None
        if inputs is not None and entry.record.inputs != inputs:
            return None
        if inputs is None and offer.inputs is not None and entry.record.inputs != offer.inputs:
            raise Refused("it has changed since this run was planned")
        if bool(entry.record.files) != wanted.directory:
            raise Refused(f"it is {'a directory' if entry.record.files else 'a file'} there")
        try:
            how = store.take(entry, made)
        except Refused:
            notes.refuse(entry)
            raise
    except Refused as error:
        say(f"refused {wanted.artifact}: {store.shown} has it, but {error}")
        return None
    except (Unreachable, OSError) as error:
        lose(offer.settings, notes.TAKEN, error, say)
        return None
    _place_origins(entry, offer.behind)
    notes.done(notes.TAKEN, wanted.digest, entry.record.bytes)
    entry.record.artifact = wanted.artifact
    return entry.record, how


def _place_origins(entry: Entry, behind: dict[str, str]) -> None:
    """Write the records of what the artifact was made from, as if that was made and deleted here.

    Only where nothing is and nothing is being made.
    """
    for path, digest in behind.items():
        origin, now = entry.origins.get(digest), recipes.read(path)
        if origin is None or (now and now.fits(digest)):
            continue
        if not os.path.lexists(path) and not building_directory(path).exists():
            origin.artifact = path
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            recipes.write(origin)


def entry_of(record: Record, behind: dict[str, str]) -> Entry | None:
    """The entry of an artifact that lies here, with the records of all that it is made from.

    behind: as in Offer. None if some of it was only accepted as it is: then it may have other bytes
    than its recipe gives, and only those who accepted it know.
    """
    records = {digest: recipes.read(path) for path, digest in behind.items()}
    origins = {digest: each for digest, each in records.items() if each}
    if record.is_link or any(each.digest != digest for digest, each in origins.items()):
        return None
    return Entry(record, origins)


def put(record: Record, offer: Offer, say: Say) -> None:
    """Put an artifact that has just been built."""
    try:
        entry = entry_of(record, offer.behind)
        if entry is None or (store := reach(offer.settings, notes.PUT, say)) is None:
            return
        brought = store.put(entry, Path(record.artifact), notes.was_refused(record.digest))
        notes.forgive(record.digest)
        if brought is not None:
            notes.done(notes.PUT, record.digest, brought)
    except Exception as error:  # noqa: BLE001 - whatever it is, the artifact is built
        lose(offer.settings, notes.PUT, error, say)


def sees(store: Store, record: Record, brought: bool = False) -> bool:
    """Whether a store has exactly the bytes of a record; all of them are read.

    brought: this process has just brought them. In a bucket their size is enough then. Raises
    Refused, Unreachable.
    """
    entry = store.look(record.digest)
    if entry is None or entry.contents != record.contents:
        return False
    for name, (_, sha256) in entry.contents.items():
        if brought and store.is_far:
            continue
        if store.place.sha256(content_name(sha256)) != sha256:
            raise Refused(f"{name or 'it'} has other bytes than its record says")
    return True

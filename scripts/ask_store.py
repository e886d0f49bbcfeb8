"""Show what the store has, check it, put into it, and prune it (docs/store.md).

The store is the one that QUANTMILL_STORE names. Without options: what is in it, and what of this
config. `--config check=true` reads every byte. `put=true` puts what is here. `keep=30d`,
`size=500G` and `unasked=true` choose what goes: what fits all that is given. Nothing is removed
without `yes=true`.
"""

import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError, program
from lib.planning.staleness import State
from lib.planning.taking import behind
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.recipe import Record
from lib.record.unrecorded import recorded
from lib.run.answers import columns, everything, first, open_session, parser
from lib.run.session import Session
from lib.store.entry import Entry, Foreign, Refused
from lib.store.places import Found, Unreachable
from lib.store.store import VARIABLE, Settings, Store, content_name
from lib.store.visit import entry_of
from lib.units import count, human, is_are

SHOWN = 40
AT_ONCE = 8
GRACE_S = 3600
DAY_S = 86400


@dataclass
class Kept:
    """An entry of the store. entry: None if it is refused, then `why` says so.

    file: its own. contents: the sha256 of the files that it needs, also if it is refused; None if
    another version of Quantmill is to tell. asked: whether this config wants it.
    """

    digest: str
    file: Found
    entry: Entry | None
    contents: set[str] | None
    why: Refused | None
    asked: bool

    @property
    def bytes(self) -> int:
        """Bytes of the artifact."""
        return self.entry.record.bytes if self.entry else 0

    @property
    def is_damaged(self) -> bool:
        """Whether it is no good to anybody."""
        return self.why is not None and not isinstance(self.why, Foreign)


def main() -> int | None:
    # What the whole config declares is asked for, whichever models this run is about.
    session = open_session(parser(__doc__).parse_args().config, model=[], skip=[])
    if (settings := Settings.of_environment()) is None:
        raise UserError(f"{VARIABLE} is not set: it names the store, a directory or s3://…")
    options = session.options
    try:
        store = Store(settings)
        if options.put:
            fill(session, store)
        kept = read(store, session)
        sizes = {sha256: found for sha256, found in store.contents()}
        if options.check:
            return check(store, kept, sizes, options.yes)
        if options.keep or options.size or options.unasked:
            prune(session, store, kept, sizes)
        else:
            print("\n".join(listing(session, store, kept, sizes)))
    except Unreachable as error:
        raise UserError(f"{settings.location}: {error}") from None
    return None


def read(store: Store, session: Session) -> list[Kept]:
    """All entries, the newest first."""
    wanted = {artifact.digest for artifact in shared(session)}

    def one(pair: tuple[str, Found]) -> Kept | None:
        digest, file = pair
        try:
            entry = store.read(digest)
        except Refused as error:
            return Kept(digest, file, None, store.named(digest), error, digest in wanted)
        return entry and Kept(digest, file, entry, entry.sha256s, None, digest in wanted)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = filter(None, pool.map(one, store.entries()))
    return sorted(found, key=lambda kept: -kept.file.at)


def shared(session: Session) -> list[Artifact]:
    """The artifacts of the config that are put into a store."""
    return [each for each in everything(session) if session.taking.is_shared(each)]


def listing(session: Session, store: Store, kept: list[Kept], sizes: dict[str, Found]) -> list[str]:
    """The lines on what the store has."""
    of_config = shared(session)
    there = {each.digest for each in kept if each.entry}
    have = sum(artifact.digest in there for artifact in of_config)
    lines = [
        f"{store.shown}: {entries(kept)}, {human(sum(file.bytes for file in sizes.values()))}",
        f"of this config: {have} of {count(len(of_config), 'artifact')} that it can share",
        *first(table(kept), SHOWN, "  "),
    ]
    if refused := [each for each in kept if not each.entry]:
        lines.append(f"refused: {len(refused)}, {refused[0].why}; `--config check=true` names them")
    return lines


def table(kept: Iterable[Kept]) -> list[str]:
    """A line for each entry: what it is, its step, size and age; * if this config wants it."""
    now = time.time()
    rows = [
        (
            each.entry.record.artifact,
            str(each.entry.record.recipe.get("step", "")),
            human(each.bytes),
            f"{max(0, now - each.file.at) / DAY_S:.1f} d",
            "*" if each.asked else "",
        )
        for each in kept
        if each.entry
    ]
    return columns(rows, right=(2, 3))


def entries(kept: list[Kept]) -> str:
    """How many entries there are."""
    return f"{len(kept)} {'entry' if len(kept) == 1 else 'entries'}"


def fill(session: Session, store: Store) -> None:
    """Put all that is here and fresh, and hash it before."""
    number = size = others = 0
    for artifact in shared(session):
        record = session.plan.record(artifact)
        fresh = session.plan.state(artifact) is State.FRESH and os.path.exists(artifact.path)
        if not fresh or artifact.temporary or record.digest != artifact.digest:
            continue
        if (entry := entry_of(record, behind(artifact))) is None or store.has(record.digest):
            continue
        made = Path(artifact.path)
        if not entry.is_at(made):
            print(f"{artifact.path} has other bytes than its record says: `snakemake verify`")
            continue
        if store.put(entry, made) is None:
            others += 1
        else:
            number, size = number + 1, size + record.bytes
    if others:
        print(f"Not put: {count(others, 'artifact')}, whose entries only others may replace.")
    print(f"Put there: {count(number, 'artifact')}, {human(size)}.")


def check(store: Store, kept: list[Kept], sizes: dict[str, Found], yes: bool) -> int:
    """Read every byte, and say what is damaged; yes: remove that. The program's status."""

    def is_whole(sha256: str) -> bool:
        try:
            return store.place.sha256(content_name(sha256)) == sha256
        except FileNotFoundError:  # pruned meanwhile
            return True

    with ThreadPoolExecutor(AT_ONCE) as pool:
        damaged = {
            sha for sha, whole in zip(sizes, pool.map(is_whole, sizes), strict=True) if not whole
        }
    bad = {each.file.name: f"its entry: {each.why}" for each in kept if each.is_damaged}
    for each in kept:
        lost = (each.contents or set()) - (sizes.keys() - damaged)
        if lost:
            is_there = f"{len(lost & damaged)} damaged, {len(lost - damaged)} missing"
            of = each.entry.record.artifact if each.entry else "its entry"
            bad[each.file.name] = f"{of}: of its files {is_there}"
    size = human(sum(file.bytes for file in sizes.values()))
    if foreign := {each.file.name: each.why for each in kept if isinstance(each.why, Foreign)}:
        print(f"{store.shown}: not to be taken here {is_are(len(foreign))} {len(foreign)}:")
        print("\n".join(named(foreign)))
    if not bad and not damaged:
        print(f"{store.shown}: {entries(kept)}, {size}: every byte is what its entry says.")
        return 0
    print(f"{store.shown}: {entries(kept)}, {size} read; damaged {is_are(len(bad))} {len(bad)}:")
    print("\n".join(named(bad)))
    if not yes:
        print("\nTo remove these: snakemake store --config check=true yes=true")
        return 1
    for name in [*bad, *map(content_name, damaged)]:
        store.place.remove(name)
    print("\nRemoved; who needs one builds it, and puts it there again.")
    return 0


def named(files: Mapping[str, object]) -> list[str]:
    """A line for each file: {name: what is to be said of it}."""
    return first([f"  {name[-69:]}  {why}" for name, why in files.items()], SHOWN, "  ")


def prune(session: Session, store: Store, kept: list[Kept], sizes: dict[str, Found]) -> None:
    """Show what goes by age, by size and by what this config wants; with `yes`, remove it.

    What is cold here stays.
    """
    options = session.options
    cold_here = needed_here()
    needed = {record.digest for record in cold_here}
    going = [each for each in kept if each.digest not in needed]
    going = [each for each in going if not (options.unasked and each.asked)]
    if options.keep:
        before = time.time() - int(options.keep[:-1]) * DAY_S
        going = [each for each in going if each.file.at < before]
    if options.size:
        going = oldest(kept, going, sizes, int(options.size[:-1]) * 10**9)
    gone = {each.digest for each in going}
    left = [each for each in kept if each.digest not in gone]
    free = unneeded(left, going, cold_here, sizes)
    size = human(sum(sizes[sha256].bytes for sha256 in free))
    print(f"{store.shown}: {len(going)} of {entries(kept)} and {size} that nothing else needs:")
    print("\n".join(first(table(going), SHOWN, "  ")))
    if not going and not free:
        return
    if not options.yes:
        words = [f"keep={options.keep}"] if options.keep else []
        words += [f"size={options.size}"] if options.size else []
        words += ["unasked=true"] if options.unasked else []
        print(
            f"\nNothing is removed yet. To remove exactly these:\n"
            f"    snakemake store --config {' '.join(words)} yes=true"
        )
        return
    for each in going:
        store.place.remove(each.file.name, each.file.at)
    # What was put since is not in `kept`, and may need some of that content: it is put aside before
    # entries are read, so that who writes one afterwards does not find it, and puts it again.
    place, free = store.place, unneeded(read(store, session), going, cold_here, sizes)
    aside = {sha: part for sha in free if (part := place.aside(content_name(sha)))}
    stays = aside.keys() - unneeded(read(store, session), going, needed_here(), sizes)
    for sha256, part in aside.items():
        place.back(part, content_name(sha256)) if sha256 in stays else place.remove(part)
    place.tidy()
    print(f"\nRemoved, {size}. Files that are linked to stay where they are linked.")


def needed_here() -> list[Record]:
    """The records of what is cold in this directory: the store may have its only bytes."""
    records = (recipes.read(path) for path in recorded("results"))
    return [r for r in records if r and cold.place_of(r.artifact, r)]


def oldest(kept: list[Kept], going: list[Kept], sizes: dict[str, Found], most: int) -> list[Kept]:
    """As many of those that may go, the oldest first, as leave no more than `most` bytes."""
    users: dict[str, int] = {}
    for sha256 in (sha256 for each in kept for sha256 in each.contents or ()):
        users[sha256] = users.get(sha256, 0) + 1
    left = sum(sizes[sha256].bytes for sha256 in users if sha256 in sizes)
    chosen = []
    for each in reversed(going):
        if left <= most:
            break
        chosen.append(each)
        for sha256 in each.contents or ():
            users[sha256] -= 1
            left -= sizes[sha256].bytes if not users[sha256] and sha256 in sizes else 0
    return chosen


def unneeded(
    left: list[Kept], going: list[Kept], cold_here: list[Record], sizes: dict[str, Found]
) -> list[str]:
    """The sha256 of content that only the entries that go need, or none, for longer than an hour.

    What has no entry yet is of somebody who is putting it. cold_here: records of what is needed
    besides. Nothing is unneeded where an entry stays of which another version is to tell.
    """
    if any(each.contents is None for each in left):
        return []
    needed = {sha256 for each in left for sha256 in each.contents}
    needed |= {sha256 for record in cold_here for sha256 in Entry(record).sha256s}
    let_go = {sha256 for each in going for sha256 in each.contents or ()}
    before = time.time() - GRACE_S
    found = ((sha, file) for sha, file in sizes.items() if sha not in needed)
    return [sha for sha, file in found if sha in let_go or file.at < before]


if __name__ == "__main__":
    program(main)

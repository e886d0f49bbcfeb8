"""What a run takes from the store instead of building it, and what that saves it from building.

The store has no part in what is stale (staleness.py): it only changes how a stale artifact is had.
"""

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from lib.planning.staleness import Plan, State
from lib.record import cold
from lib.record.artifact import Artifact, in_order
from lib.record.recipe import Record
from lib.store import notes
from lib.store.entry import Entry, Refused
from lib.store.offer import Offer
from lib.store.places import Unreachable
from lib.store.store import Settings, Store

AT_ONCE = 16  # questions to a bucket


class Taking:
    """What a plan takes from a store.

    store: None if there is none. everything: whether also what never comes out the same twice is
    shared.
    """

    def __init__(self, plan: Plan, store: Store | None, everything: bool = False):
        self.plan, self.store, self.everything = plan, store, everything
        self._entries: dict[str, Entry | None] = {}
        self._offers: dict[str, Offer | None] = {}
        self._looked: dict[str, Entry | Refused | None] | None = None  # {digest: what was found}
        self._varies: dict[str, bool] = {}

    def entry(self, artifact: Artifact) -> Entry | None:
        """The store's entry by which an artifact that is to be built is taken; None: it is built.

        It is taken only if it was made from the same bytes that are here, or will be.
        """
        if artifact.path not in self._entries:
            self._entries[artifact.path] = self._find(artifact)
        return self._entries[artifact.path]

    def known(self, artifact: Artifact) -> Record | None:
        """The record of an artifact that is to be built and is taken instead, from wherever."""
        if entry := self.entry(artifact):
            return entry.record
        return self.plan.record(artifact) if self._on_hub(artifact) else None

    def where(self, artifact: Artifact) -> str:
        """From where an artifact is taken, in words."""
        if self.entry(artifact):
            return f"the store {self.store.shown}"
        return self._on_hub(artifact)["repo"]

    def fetch(self, artifact: Artifact) -> dict[str, Any] | None:
        """What the step needs that takes a cold artifact from the hub; None: it does not."""
        if self.known(artifact) is None or (hub := self._on_hub(artifact)) is None:
            return None
        record = asdict(self.plan.record(artifact))
        return {"hub": hub, "record": record, "listed": self.waits(artifact)}

    def _on_hub(self, artifact: Artifact) -> dict[str, Any] | None:
        """Where on the hub a cold artifact lies that no store has: {repo, commit, files}."""
        forced = self.plan.state(artifact) is not State.ABSENT
        place = None if forced or self.entry(artifact) else self.plan.place(artifact)
        return place and place.get("hub")

    def waits(self, artifact: Artifact) -> bool:
        """Whether a step waits for what its artifact is made from.

        Not if the artifact is taken, unless all of that is there anyway: then the step can build if
        the store's entry turns out to be damaged.
        """
        if self.known(artifact) is None:
            return True
        return all(self.plan.state(up) is State.FRESH for up in artifact.needed)

    def builds(self, asked: Iterable[Artifact]) -> list[Artifact]:
        """All artifacts that a run builds or takes if it is asked for these; each after its inputs.

        What only a taken one is made from is not among them.
        """
        asked, plan = list(asked), self.plan

        def is_left(artifact: Artifact) -> bool:
            # What is cold stays where it is, unless somebody asks for it.
            away = artifact not in named and plan.stays_away(artifact)
            return plan.state(artifact) is State.FRESH or away

        named = set(asked)
        return in_order(
            asked,
            leave=is_left,
            alone=lambda artifact: self.known(artifact) is not None,
        )

    def sizes(self, artifacts: Iterable[Artifact]) -> dict[str, int]:
        """{path: bytes} of those of these that are taken."""
        records = ((artifact.path, self.known(artifact)) for artifact in artifacts)
        return {path: record.bytes for path, record in records if record}

    def offer(self, artifact: Artifact) -> Offer | None:
        """What the step of a stale artifact may do with the store; None if that is nothing."""
        if artifact.path not in self._offers:
            self._offers[artifact.path] = self._offer(artifact)
        return self._offers[artifact.path]

    def _offer(self, artifact: Artifact) -> Offer | None:
        if self.store is None:
            return None
        if artifact.rule == cold.RULE:
            return self._offer_of_place(artifact.inputs[cold.MADE])
        if not self.is_shared(artifact):
            return None
        entry = self.entry(artifact)
        return Offer(
            self.store.settings,
            take=self._may_take(artifact),
            planned=entry and entry.record.bytes,
            listed=self.waits(artifact),
            put=not artifact.temporary,
            behind=behind(artifact),
            inputs=entry and entry.record.inputs,
        )

    def _offer_of_place(self, finished: Artifact) -> Offer | None:
        """The offer of a step that deletes what the store has; None if it never will have it."""
        if not self.is_shared(finished):
            return None
        how = {"take": False, "planned": None, "listed": True, "put": False}
        return Offer(self.store.settings, **how, behind=behind(finished))

    def is_shared(self, artifact: Artifact) -> bool:
        """Whether artifacts of this kind are put into a store, and taken from it.

        Not links, tools and environments, which belong to this machine; nor copies of the user's
        own files; nor reports, cards and notes, which take seconds; nor what never comes out the
        same twice, and what is made from it.
        """
        only_here = artifact.links or artifact.describes or artifact.file
        only_here = only_here or artifact.rule == cold.RULE
        one = len(artifact.outputs) == 1
        return one and not only_here and (self.everything or not self._vary(artifact))

    def _vary(self, artifact: Artifact) -> bool:
        if artifact.path not in self._varies:
            varies = not artifact.reproducible or any(map(self._vary, artifact.inputs.values()))
            self._varies[artifact.path] = varies
        return self._varies[artifact.path]

    def _may_take(self, artifact: Artifact) -> bool:
        """Whether nobody forces its build, and it is not to be linked to another of its recipe."""
        same = any(up.digest == artifact.digest for up in artifact.uses.values())
        return not same and not self.plan.forced(artifact)

    def _find(self, artifact: Artifact) -> Entry | None:
        if self.plan.state(artifact) is State.FRESH or self.store is None:
            return None
        if not self.is_shared(artifact) or not self._may_take(artifact):
            return None
        try:
            entry = self._look(artifact)
        except Refused as error:
            say(f"refused {artifact.path}: {self.store.shown} has it, but {error}; it is built")
            return None
        except Unreachable as error:
            say(f"store   {self.store.shown}: {error}: this run goes on without it")
            self.store = None
            return None
        if entry is None or notes.is_refused(entry) or not self._fits(artifact, entry):
            return None
        return entry

    def _look(self, artifact: Artifact) -> Entry | None:
        """The store's entry. Raises Refused and Unreachable.

        A bucket is asked for everything that may be needed at the first question, side by side.
        """
        if self._looked is None:
            self._looked = {}
            if self.store.is_far:
                known = (each for each in self.plan.graph if self.is_shared(each))
                stale = [each for each in known if self.plan.state(each) is not State.FRESH]
                digests = list({each.digest for each in stale})
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    self._looked = dict(zip(digests, pool.map(self._asked, digests), strict=True))
        if artifact.digest not in self._looked:
            self._looked[artifact.digest] = self._asked(artifact.digest)
        found = self._looked[artifact.digest]
        if isinstance(found, Refused):
            raise found
        return found

    def _asked(self, digest: str) -> Entry | Refused | None:
        try:
            return self.store.look(digest)
        except Refused as error:
            return error

    def _fits(self, artifact: Artifact, entry: Entry) -> bool:
        """Whether an entry was made from the bytes that the inputs have here, as far as is known.

        Else it would be stale as soon as it is here.
        """
        if bool(entry.record.files) != artifact.directory:
            return False
        for role, up in artifact.read.items():
            sha256, record = entry.record.inputs.get(role), self.plan.record(up)
            if record is None or not record.fits(up.digest):
                wanted = self.plan.state(up) is State.STALE and not up.on_demand
                taken = self.entry(up) if wanted else None
                record = taken and taken.record
            if sha256 is None or (record and record.sha256 != sha256):
                return False
        return True


def behind(artifact: Artifact) -> dict[str, str]:
    """{path: digest of the recipe} of all that an artifact is made from."""
    return {up.path: up.digest for up in in_order(artifact.inputs.values())}


def say(line: str) -> None:
    """Print a line on the console, which is stderr."""
    print(line, file=sys.stderr)


def opened(settings: Settings | None) -> Store | None:
    """The store of these settings; None, and a line says why, if it cannot be reached."""
    if settings is None:
        return None
    try:
        return Store(settings)
    except Unreachable as error:
        say(f"store   {settings.location}: {error}: this run goes on without it")
        return None

"""What is stale, and why: compare the recipes that follow from the config with the records on disk.

Each file costs one stat(2); nothing is hashed.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lib.planning.graph import Graph
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.recipe import MADE_FROM


class State(Enum):
    """FRESH: as its recipe says. STALE: to be built. ABSENT: an intermediate without use now.

    An absent artifact is gone or outdated, or cold (lib/record/cold.py). It is built only if a
    stale one is made from it.
    """

    FRESH = "fresh"
    STALE = "stale"
    ABSENT = "absent"


@dataclass(slots=True)
class Verdict:
    """The state of an artifact, and one line for each reason.

    damaged: it, or an artifact that it is made from, was changed after its build. Then artifacts
    made from it are not trusted either.
    """

    state: State
    reasons: list[str]
    damaged: bool = False


class Plan:
    """Judges each artifact once, when it is asked about.

    forced(artifact): whether Snakemake's command line asks to build this one (-F, -R, --forcerun).
    published(artifact): the repository to which this run uploads it, org/name, if it does.
    taken(artifact): whether it is taken from a store, without what it is made from.
    """

    def __init__(
        self,
        graph: Graph,
        forced: Callable[[Artifact], bool] = lambda artifact: False,
        published: Callable[[Artifact], str | None] = lambda artifact: None,
        taken: Callable[[Artifact], bool] = lambda artifact: False,
    ):
        self.graph = graph
        self._forced = forced
        self._published, self._taken = published, taken
        self._verdicts: dict[str, Verdict] = {}
        self._records: dict[str, recipes.Record | None] = {}
        self._downstream_of_forced: dict[str, bool] = {}
        self._places: dict[str, dict[str, Any] | None] = {}

    def record(self, artifact: Artifact) -> recipes.Record | None:
        """The artifact's record on disk, read once; None if it is missing or damaged."""
        if artifact.path not in self._records:
            self._records[artifact.path] = recipes.read(artifact.path)
        return self._records[artifact.path]

    def state(self, artifact: Artifact) -> State:
        """The artifact's state without the reasons."""
        return self.verdict(artifact).state

    def verdict(self, artifact: Artifact) -> Verdict:
        """The artifact's state, with the reasons."""
        if artifact.path not in self._verdicts:
            self._verdicts[artifact.path] = self._judge(artifact)
        return self._verdicts[artifact.path]

    def stale(self, artifacts: Iterable[Artifact]) -> list[Artifact]:
        """The artifacts of these that have to be built, without those built on demand only."""
        return [
            artifact
            for artifact in artifacts
            if not artifact.on_demand and self.state(artifact) is State.STALE
        ]

    def place(self, artifact: Artifact) -> dict[str, Any] | None:
        """Where the bytes of a cold artifact are; None if it is not cold, or not as wanted."""
        if artifact.path not in self._places:
            record = self.record(artifact)
            here = os.path.lexists(artifact.path)
            fits = record is not None and record.fits(artifact.digest) and not here
            self._places[artifact.path] = cold.place_of(artifact.path, record) if fits else None
        return self._places[artifact.path]

    def stays_away(self, artifact: Artifact) -> bool:
        """Whether an artifact is cold, and nothing that is stale is made from it.

        Or it is a link to what is cold.
        """
        if self.state(artifact) is not State.ABSENT:
            return False
        if not self.place(artifact):
            record = self.record(artifact)
            linked = record is not None and record.is_link
            return linked and any(map(self.place, artifact.inputs.values()))
        note = self.graph.note(artifact)
        return note is not None and self.state(note) is State.FRESH

    def _judge(self, artifact: Artifact) -> Verdict:
        if self.forced(artifact):
            return Verdict(State.STALE, ["forced"])
        if artifact.rule == cold.RULE:
            return self._judge_note(artifact)
        record = self.record(artifact)
        if record and any(recipes.read(path) is None for path in artifact.outputs[1:]):
            record = None
        # A link to a GGUF source counts as there only while it leads somewhere.
        exists = os.path.exists if artifact.links and not artifact.directory else os.path.lexists
        there = all(map(exists, artifact.outputs))
        idle = artifact.intermediate and (not there or artifact.temporary)
        if record is None:
            if idle:
                return Verdict(State.ABSENT, ["it is not there"])
            reason = "its recipe is missing or damaged" if there else "it is missing"
            return Verdict(State.STALE, [reason])
        if not record.fits(artifact.digest):
            reasons = self.changes(artifact, record)
            return Verdict(State.ABSENT if idle else State.STALE, reasons)
        tainted = self._tainted(artifact)
        if not there:
            away = artifact.intermediate or self.place(artifact)
            state = State.ABSENT if away else State.STALE
            return Verdict(
                state, ["it is cold" if self.place(artifact) else "it is missing"], bool(tainted)
            )
        if record.is_link and any(map(self.place, artifact.inputs.values())):
            return Verdict(State.ABSENT, ["it links to what is cold"], bool(tainted))
        if artifact.links:
            whole = all(os.path.exists(f"{artifact.path}/{name}") for name in record.files)
            return Verdict(
                State.FRESH if whole else State.ABSENT, [] if whole else ["a link leads nowhere"]
            )
        if wrong := self._wrong_size(artifact, record):
            return Verdict(State.STALE, wrong, damaged=True)
        if tainted:
            return Verdict(State.STALE, tainted, damaged=True)
        if other := self._other_bytes(artifact, record):
            return Verdict(State.STALE, other)
        return Verdict(State.FRESH, [])

    def _judge_note(self, note: Artifact) -> Verdict:
        """Whether a file is to be deleted: it is here, or comes back for what is made from it.

        The note's own recipe has no part in that.
        """
        finished = note.inputs[cold.MADE]
        state, record = self.state(finished), self.record(finished)
        if state is State.STALE:
            return Verdict(State.STALE, [f"{MADE_FROM}{finished.path}, which is built"])
        repo, place = self._published(finished), self.place(finished)
        there = ((place or {}).get("hub") or {}).get("repo")
        if repo and repo != there and not record.is_link:
            return Verdict(State.STALE, [f"{MADE_FROM}{finished.path}, which is published"])
        if state is State.FRESH:
            if record.is_link or cold.is_kept(finished.path, record, note.digest):
                return Verdict(State.ABSENT, ["it is no file that can be deleted"])
            return Verdict(State.STALE, ["what it is of lies here, and can lie elsewhere"])
        stale = (up for up in note.uses.values() if place and self.state(up) is State.STALE)
        if back := next((up for up in stale if not self._taken(up)), None):
            text = f"{MADE_FROM}{finished.path}, which comes back for {back.path}"
            return Verdict(State.STALE, [text])
        return Verdict(State.FRESH if place else State.ABSENT, [])

    def forced(self, artifact: Artifact) -> bool:
        """Whether -F, -R or --forcerun asks to build it, or an artifact that it is made from."""
        known = self._downstream_of_forced
        if artifact.path not in known:
            upstream = (self.forced(up) for up in artifact.inputs.values())
            known[artifact.path] = self._forced(artifact) or any(upstream)
        return known[artifact.path]

    def damage(self, artifact: Artifact, record: recipes.Record) -> list[str]:
        """One line for each file that is missing or has another size than when it was made."""
        if not all(map(os.path.lexists, artifact.outputs)):
            return ["it is missing"]
        return [] if artifact.links else self._wrong_size(artifact, record)

    def _wrong_size(self, artifact: Artifact, record: recipes.Record) -> list[str]:
        if artifact.directory:
            try:
                sizes = {name: os.stat(f"{artifact.path}/{name}").st_size for name in record.files}
            except OSError as error:
                return [f"{error.filename} is missing"]
            wrong = [name for name, size in sizes.items() if size != record.files[name][0]]
            return [
                f"{artifact.path}/{name} has another size than when it was made"
                for name in wrong[:3]
            ]
        lines = []
        for path in artifact.outputs:
            own = record if path == artifact.path else recipes.read(path)
            if own is None or own.digest != record.digest:
                lines.append(f"the recipe of {path} is missing or damaged")
            elif os.stat(path).st_size != own.bytes:
                size = os.stat(path).st_size
                lines.append(f"{path} has {size} bytes; {own.bytes} were made")
        return lines

    def _tainted(self, artifact: Artifact) -> list[str]:
        return [
            f"{up.path}{FROM_DAMAGED}"
            for up in artifact.inputs.values()
            if self.verdict(up).damaged
        ]

    def _other_bytes(self, artifact: Artifact, record: recipes.Record) -> list[str]:
        """One line for each input whose bytes are not those that the artifact was made from.

        Such an input has the same recipe as before, but was built again and came out different.
        """
        lines = []
        for role, up in artifact.read.items():
            if self.state(up) is State.STALE and not up.reproducible:
                lines.append(f"{up.path} is built again, and never comes out the same twice")
                continue
            now = self.record(up)
            if now and now.fits(up.digest) and now.sha256 != record.inputs.get(role):
                lines.append(f"{up.path} has other bytes than when this was made from it")
        return lines

    def changes(self, artifact: Artifact, record: recipes.Record) -> list[str]:
        """Lines for people on how the recipe of the last build differs from the wanted one."""
        old, new = record.recipe, artifact.recipe
        lines = recipes.difference(old.get("options"), new["options"])
        for name, before, now in _pairs(old, new, "sources"):
            lines.append(f"{name}: {_content_change(before, now)}")
        for name, before, now in _pairs(old, new, "tools"):
            lines.append(f"tool {name} {before or '(none)'} -> {now or '(none)'}")
        if old.get("code") != new["code"]:
            lines.append("the code that makes it changed")
        lines += dict.fromkeys(
            self._input_change(artifact, role, before, now)
            for role, before, now in _pairs(old, new, "inputs")
        )
        return lines or ["its record's digest does not fit its recipe"]

    def _input_change(
        self, artifact: Artifact, role: str, before: str | None, now: str | None
    ) -> str:
        if now is None:
            return f"no longer made from its {role}"
        if before is None:
            return f"now made from {artifact.inputs[role].path} too"
        return f"{MADE_FROM}{artifact.inputs[role].path}, whose recipe changed"


FROM_DAMAGED = ", from which it is made, is damaged"


def _pairs(old: dict, new: dict, key: str) -> list[tuple[str, Any, Any]]:
    """(name, before, now) of each entry under `key` in which two recipes differ; None: no entry."""
    before, now = old.get(key) or {}, new.get(key) or {}
    names = sorted(before.keys() | now.keys())
    return [(n, before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)]


def _content_change(before: Any, now: Any) -> str:
    """How the identity of a source (a model, text or file from outside) has changed, in words."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return "new" if before is None else "no longer used"
    if "commit" in before and "commit" in now and before["commit"] != now["commit"]:
        return f"commit {before['commit'][:10]} -> {now['commit'][:10]}"
    if "sha256" in before or "sha256" in now or "hub" in now:
        return "content changed"
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"content changed ({', '.join(names[:3])}{more})"

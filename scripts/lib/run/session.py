"""The config, the graph and the plan of a run, for patterns and targets of the rules.

There is one `Session` in each Snakemake process. lib/planning/handoff.py explains how Snakemake is
made to run the stale steps; lifecycle.py has what happens before the first job and after the last.
"""

import gc
import os
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from lib.config.load import load
from lib.config.schema import Config, Options
from lib.errors import UserError, plainly
from lib.forecast.machine import Machine
from lib.hub.lock import Lock, lock_missing
from lib.hub.references import hub_sources
from lib.planning import handoff
from lib.planning.cooling import Cooling
from lib.planning.graph import Graph
from lib.planning.publishing import uploads
from lib.planning.staleness import Plan, State
from lib.planning.taking import Taking, opened
from lib.record import cold
from lib.record.artifact import Artifact
from lib.record.contents import Contents
from lib.run.hold import insist_free
from lib.stages.cold import KIND
from lib.stages.registry import STAGES
from lib.store.store import Settings

ALONE = Machine(1)
ALL = "all"  # the default target
# Targets that answer a question: they build nothing and may be asked while a build runs.
ANSWERS = {"why", "plan", "verify", "orphans", "status", "live", "lock", "preflight"}
ANSWERS |= {"publish_plan", "gallery", "choose", "audit", "store"}
# `accept` holds the directory itself, and gives the hold back to make reports anew.
ANSWERS.add("accept")


class Session:
    """The config, the graph and the plan of this run."""

    @plainly
    def __init__(
        self,
        raw: dict,
        settings: Callable,
        main: bool,
        machine: Machine = ALONE,
        builds: Callable = lambda: False,
    ):
        """Read the config, and lock the hub references that are not locked yet.

        raw: the config as Snakemake has it. settings(): Snakemake's DAG settings, which are not
        known yet while the Snakefile is read. main: whether this is Snakemake's main process.
        machine: what the steps may use. builds(): whether this is no dry run, as `settings`.
        """
        self.config: Config
        self.options: Options
        self.config, self.options = load(raw, Path.cwd())
        self.raw, self._settings, self.main, self.machine = raw, settings, main, machine
        self._builds = builds
        self.building: dict[str, Artifact] = {}  # what this run was asked for and has to build
        self.jobs: Counter[str] = Counter()  # of these, by rule, as far as Snakemake has met them
        self.contents = Contents()
        if main:
            lock_missing(hub_sources(self.config, self.options.models()), Path())
        self.graph = Graph(
            self.config,
            self.contents,
            Lock.read(),
            self.options.models(),
            skip=self.options.skip,
        )
        # What Snakemake and its plugins have loaded stays: the garbage collector need not go
        # through it while the plan is made.
        gc.freeze()

    @cached_property
    def plan(self) -> Plan:
        """The plan of this run. Raises UserError if another run is at work."""
        if not self.asked_only(ANSWERS):
            if self.main and self._builds():
                insist_free()  # what it replaces just now may look odd to Snakemake
            own = [name for name, model in self.config.models.items() if model.own_gguf]
            handoff.remove_dangling_links(
                a for name in own for a in self.graph.artifacts(name).values()
            )
            for name in self.graph.names:
                forms = self.graph.cold_notes(name) if name in self.config.models else []
                for note in (note for form in forms for note in form):
                    cold.restore(note.inputs[cold.MADE].path)
        return Plan(
            self.graph,
            self._is_forced,
            lambda artifact: self.uploads.get(artifact.path, {}).get("repo"),
            lambda artifact: not self.taking.waits(artifact),
        )

    @cached_property
    def uploads(self) -> dict[str, dict]:
        """What a run of `publish` uploads, each as soon as it is made, and deletes here."""
        publishes = self.main and "publish" in self._settings().targets
        return uploads(self.graph) if publishes and KIND in self.config.reclaim else {}

    @cached_property
    def taking(self) -> Taking:
        """What this run takes from the store."""
        return Taking(self.plan, opened(Settings.of_environment()), self.config.store == "all")

    @cached_property
    def cooling(self) -> Cooling:
        """What this run deletes because another place has it.

        Nothing, if it was asked for something in particular: that stays.
        """
        targets = set(self._settings().targets)
        on = KIND in self.config.reclaim and (not targets or ALL in targets or bool(self.uploads))
        return Cooling(self.plan, on, self.uploads)

    def _is_forced(self, artifact: Artifact) -> bool:
        settings = self._settings()
        named = set(settings.forcerun)
        if settings.forcetargets:
            named |= set(settings.targets)
        return settings.forceall or artifact.rule in named or not named.isdisjoint(artifact.outputs)

    def forces(self, target: str) -> bool:
        """Whether -F, --force or --forcerun asks for a target that makes no artifact."""
        settings = self._settings()
        named = set(settings.forcerun) | (set(settings.targets) if settings.forcetargets else set())
        return settings.forceall or target in named

    def find(self, path: str) -> Artifact:
        """The artifact of a path that a rule's pattern matched. Raises UserError if it is none."""
        artifact = self.graph.find(path)
        if artifact is None and (waits := self.graph.waits(path)):
            raise UserError(waits)
        if artifact is None:
            raise UserError(f"{path}: nothing of this name follows from the config")
        return artifact

    def is_stale(self, artifact: Artifact, wildcards=None) -> bool:
        """Whether this run has to build the artifact, once something asks for it.

        wildcards: the rule's; only a cluster's job looks at them.
        """
        if self.main:
            return self.plan.state(artifact) is not State.FRESH
        return handoff.is_sent_for(artifact, wildcards, self._settings().target_jobs)

    def wanted(self, artifact: Artifact) -> str:
        """The path of a stale artifact's wanted recipe; the main process also writes the file."""
        if self.main:
            self.contents.save()
            new = artifact.path not in self.building
            self.jobs[artifact.rule] += new and self.taking.known(artifact) is None
            self.building[artifact.path] = artifact
            path = handoff.leave(artifact, self.taking.offer(artifact))
            handoff.leave_beside(path, handoff.FETCH, self.taking.fetch(artifact))
            handoff.leave_beside(path, handoff.SEEN, self._seen(artifact))
            if artifact.rule == cold.RULE:
                finished = artifact.inputs[cold.MADE].path
                upload, noted = self.uploads.get(finished), cold.noted_on_hub(finished)
                handoff.leave_beside(path, handoff.UPLOAD, upload or (noted and {"noted": noted}))
            return path
        return str(handoff.path_of(artifact))

    def _seen(self, artifact: Artifact) -> dict | None:
        """The files from outside that a step reads through links; None: none."""
        linked = [up for up in artifact.read.values() if up.links]
        sources = [source for up in linked for source in up.recipe["sources"].values()]
        known = [value for each in sources if isinstance(each, dict) for value in each.values()]
        digests = {value for value in known if isinstance(value, str)}
        return self.contents.seen(digests) if digests else None

    def waits(self, artifact: Artifact) -> bool:
        """Whether the step of a stale artifact waits for its inputs (lib/planning/taking.py)."""
        if self.main:
            return self.taking.waits(artifact)
        if fetch := handoff.beside(handoff.path_of(artifact), handoff.FETCH):
            return fetch["listed"]
        offer = handoff.offer(handoff.path_of(artifact))
        return offer is None or offer.listed

    def read_as(self, reader: Artifact, up: Artifact) -> Artifact | None:
        """What the step of `reader` waits for where it needs `up` (lib/planning/cooling.py)."""
        if self.main:
            return self.cooling.read_as(reader, up)
        gone = reader.describes or reader.rule == cold.RULE  # then it does not read the file
        return None if gone and not os.path.lexists(up.path) else up

    def taken(self, artifact: Artifact) -> int | None:
        """The bytes of a stale artifact that the store or the hub has; None if it is built."""
        if self.main:
            known = self.taking.known(artifact)
            return known and known.bytes
        if fetch := handoff.beside(handoff.path_of(artifact), handoff.FETCH):
            return fetch["record"]["bytes"]
        offer = handoff.offer(handoff.path_of(artifact))
        return offer and offer.planned

    @plainly
    def asked(self, *columns: str) -> list[str]:
        """The paths of the stale artifacts that a target asks for.

        columns: of `snakemake status`, to which it is limited; then absent intermediates are asked
        for too. Without columns: everything stale.
        """
        if not columns:
            stale = self.plan.stale(self.graph)
            kept = (a for a in stale if not (a.temporary or self.cooling.goes(a)))
            return [artifact.path for artifact in kept]
        counted = (a for a in self.graph if STAGES[a.rule].column in columns)
        return [a.path for a in counted if self.plan.state(a) is not State.FRESH]

    def every(self, column: str) -> list[str]:
        """All files of a column, fresh or stale, without those that are built on demand only."""
        counted = (a for a in self.graph if STAGES[a.rule].column == column and not a.on_demand)
        return [path for artifact in counted for path in artifact.outputs]

    def asked_only(self, names: set[str]) -> bool:
        """Whether this run was asked for targets of these names and nothing else."""
        targets = set(self._settings().targets)
        return bool(targets) and targets <= names

"""What the rules ask of the plan: which inputs a step needs, what is stale. One `Session` a Snakemake process.

How Snakemake is made to run what is stale is told in lib/planning/handoff.py.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.config.load import load
from lib.config.schema import Config, Options
from lib.errors import UserError, plainly
from lib.hub.lock import Lock, lock_missing
from lib.hub.references import hub_sources
from lib.planning import handoff
from lib.planning.graph import Graph
from lib.planning.publishing import manifest
from lib.planning.staleness import Plan, State
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.contents import Contents
from lib.record.layout import RUN_STATE
from lib.run.console import summary
from lib.run.hold import clear_abandoned, hold_directory
from lib.stages.registry import STAGES
from lib.units import count, is_are

# Targets that answer a question: they build nothing and may be asked while a build runs.
ANSWERS = {"why", "plan", "verify", "orphans", "status", "lock", "preflight", "publish_plan"}
# It takes the directory's hold itself, and gives it back to make reports anew.
ANSWERS.add("accept")
# Targets that do something else than build.
ACTIONS = {"clean_orphans", "verify_rebuild", "publish"}


class Session:
    """The config, the graph and the plan of this run."""

    @plainly
    def __init__(self, raw: dict, settings: Callable, main: bool):
        """`settings()` gives Snakemake's DAG settings, which are not known while the Snakefile is read."""
        self.config: Config
        self.options: Options
        self.config, self.options = load(raw, Path.cwd())
        self._raw, self._settings, self.main = raw, settings, main
        self._building: dict[str, Artifact] = {}  # what this run was asked for and has to build
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
        # What Snakemake and its plugins have loaded stays: the collector need not go through it while the plan is made.
        gc.freeze()

    @cached_property
    def plan(self) -> Plan:
        """The plan of this run."""
        if not self._asked_only(ANSWERS):
            own = [name for name, model in self.config.models.items() if model.own_gguf]
            handoff.remove_dangling_links(
                a for name in own for a in self.graph.artifacts(name).values()
            )
        return Plan(self.graph, self._is_forced)

    def _is_forced(self, artifact: Artifact) -> bool:
        settings = self._settings()
        named = set(settings.forcerun)
        if settings.forcetargets:
            named |= set(settings.targets)
        return settings.forceall or artifact.rule in named or not named.isdisjoint(artifact.outputs)

    def find(self, path: str) -> Artifact:
        """The artifact of a path that a rule's pattern has matched."""
        artifact = self.graph.find(path)
        if artifact is None:
            raise UserError(f"{path}: nothing of this name follows from the config")
        return artifact

    def is_stale(self, artifact: Artifact, wildcards=None) -> bool:
        """Whether this run builds the artifact, if anything asks for it."""
        if self.main:
            return self.plan.state(artifact) is not State.FRESH
        return handoff.is_sent_for(artifact, wildcards, self._settings().target_jobs)

    def wanted(self, artifact: Artifact) -> str:
        """The wanted recipe of a stale artifact, as a file."""
        if self.main:
            self.contents.save()
            self._building[artifact.path] = artifact
            return handoff.leave(artifact)
        return str(handoff.path_of(artifact))

    @plainly
    def asked(self, *columns: str) -> list[str]:
        """What a target asks for: all that is stale.

        Of columns of `snakemake status`, also the intermediates that are not there.
        """
        if not columns:
            stale = self.plan.stale(self.graph)
            return [artifact.path for artifact in stale if not artifact.temporary]
        counted = (a for a in self.graph if STAGES[a.rule].column in columns)
        return [a.path for a in counted if self.plan.state(a) is not State.FRESH]

    def every(self, column: str) -> list[str]:
        """All files of a column, fresh or stale, but for those that are built on demand only."""
        counted = (a for a in self.graph if STAGES[a.rule].column == column and not a.on_demand)
        return [path for artifact in counted for path in artifact.outputs]

    def _leave(self, name: str, request: Any) -> str:
        """Leave what a script is asked as a file, and return its path."""
        path = RUN_STATE / f"{name}.json"
        recipes.write_json(path, request)
        return str(path)

    def references_file(self) -> str:
        """What scripts/hub_lock.py is asked: every hub reference of the chosen models."""
        return self._leave(
            "references",
            [vars(source) for source in hub_sources(self.config, self.graph.names)],
        )

    def manifest_file(self) -> str:
        """What scripts/publish.py is asked: what belongs on the hub."""
        return self._leave("publish", manifest(self.graph))

    @plainly
    def repository_cards(self) -> list[str]:
        """The stale cards of the repositories: they alone depend on how a model is published."""
        return [
            artifact.path
            for artifact in self.graph
            if artifact.on_demand and self.is_stale(artifact)
        ]

    def _preflight(self, local: bool) -> None:
        """Say what would make this build fail later, where it is long enough to be worth asking."""
        models = {
            artifact.model for artifact in self._building.values() if STAGES[artifact.rule].is_long
        }
        if models and not self.options.ignore_preflight:
            script = Path(__file__).parents[2] / "ask_preflight.py"
            command = [sys.executable, str(script), "--config", self.leave_config()]
            command += ["--models", ",".join(sorted(models)), "--no-publish"]
            command += [] if local else ["--cluster"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                lines = [line for line in done.stdout.splitlines() if not line.startswith("ok ")]
                lines += [
                    done.stderr.strip(),
                    "(--config ignore_preflight=true builds all the same)",
                ]
                raise UserError(*lines)

    @plainly
    def start(self, cores: int, local: bool) -> None:
        """Before the first job: no second run in this directory, nothing that would fail later, enough disk."""
        if self._asked_only(ANSWERS):
            return
        hold_directory()
        clear_abandoned()
        self._preflight(local)
        if self._building and not self.options.ignore_disk:
            # Imported for builds only: a dry run does without.
            from lib.forecast.outlook import forecast

            outlook = forecast(self.graph, self.plan.builds(self._building.values()), cores)
            if not outlook.fits:
                raise UserError(outlook.refusal(self.config.reclaim))

    def summary(self) -> None:
        """After the last job: what there is now, and where."""
        if not self._asked_only(ANSWERS | ACTIONS):
            print(summary(self.graph))
            left = len(Plan(self.graph).stale(self.graph))
            if left:
                # Not asked for, or made from what has come out with other bytes than before.
                print(
                    f"{count(left, 'artifact')} {is_are(left)} not up to date: `snakemake why` says why."
                )

    def _asked_only(self, names: set[str]) -> bool:
        """Whether this run was asked for nothing else."""
        targets = set(self._settings().targets)
        return bool(targets) and targets <= names

    def leave_config(self) -> str:
        """The config as Snakemake has it, options included, as a file for the scripts that answer questions."""
        path = RUN_STATE / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._raw))
        return str(path)

"""What the rules ask of the plan: which inputs a step needs, what is stale. One `Session` a Snakemake process.

In the main process an artifact is stale when the plan says so, and its wanted recipe is left for the step. In the
processes that Snakemake starts for its jobs (on a cluster) the plan is not made again: what was left is obeyed, and
`begin` fails when the config there asks for something else, for which nothing was left.
"""

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

from lib.config.load import ConfigError, load
from lib.config.schema import Config, Options
from lib.formats.model_files import ModelFilesError
from lib.hub.lock import Lock, LockError, lock_missing
from lib.hub.references import hub_sources
from lib.planning.graph import Artifact, Graph
from lib.planning.publishing import manifest
from lib.planning.staleness import RUN_STATE, Plan, State, leave_wanted, wanted_path
from lib.record import recipe as recipes
from lib.record.contents import Contents
from lib.record.tools import ToolError
from lib.run.console import summary
from lib.run.hold import Busy, clear_abandoned, hold_directory
from lib.stages import resources
from lib.units import count, is_are


class DiskFull(Exception):
    """What is to be built does not fit the disk."""


class NotReady(Exception):
    """What the preflight has found."""


UserError = (Busy, ConfigError, DiskFull, NotReady, LockError, ModelFilesError, ToolError)
# Targets that answer a question: they build nothing and may be asked while a build runs.
ANSWERS = {"why", "plan", "verify", "orphans", "status", "lock", "preflight", "publish_plan"}
# It takes the directory's lock itself, and gives it back to make reports anew.
ANSWERS.add("accept")
# Steps that take long enough to ask first what will go wrong.
LONG_STEPS = {"merge", "convert", "exl2_measure", "exl2_quantize"}
# Targets that do something else than build.
ACTIONS = {"clean_orphans", "verify_rebuild", "publish"}


def plainly(ask: Callable) -> Callable:
    """A user's mistake ends Snakemake with its message alone: no traceback, no wrapping exception."""

    @wraps(ask)
    def asked(*args, **kwargs):
        try:
            return ask(*args, **kwargs)
        except UserError as error:
            sys.exit(str(error))

    return asked


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
            exl2=self.options.exl2 != "skip",
        )
        # What Snakemake and its plugins have loaded stays: the collector need not go through it while the plan is made.
        gc.freeze()

    @cached_property
    def plan(self) -> Plan:
        """The plan of this run."""
        if not self._asked_only(ANSWERS):
            self._remove_dangling_links()
        return Plan(self.graph, self._is_forced)

    def _remove_dangling_links(self) -> None:
        """Of GGUF sources: Snakemake (9.27.1) fails at asking what they lead to for its date."""
        for name, model in self.config.models.items():
            link = f"results/{name}/gguf/{name}-{model.conversion}.gguf"
            if model.own_gguf and os.path.islink(link) and not os.path.exists(link):
                os.unlink(link)

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
            raise ConfigError([f"{path}: nothing of this name follows from the config"])
        return artifact

    def is_stale(self, artifact: Artifact, wildcards=None) -> bool:
        """Whether this run builds the artifact, if anything asks for it."""
        if self.main:
            return self.plan.state(artifact) is not State.FRESH
        # A cluster's job builds what it was sent for, even if a job of an earlier run has just built it: then
        # `commit` has set the mark back, and `begin` finds it ready.
        return wildcards is not None and any(
            target.rulename.removesuffix("_reclaimed") == artifact.rule
            and target.wildcards_dict == dict(wildcards.items())
            for target in self._settings().target_jobs
        )

    def wanted(self, artifact: Artifact) -> str:
        """The wanted recipe of a stale artifact, as a file."""
        if self.main:
            self.contents.save()
            self._building[artifact.path] = artifact
            return leave_wanted(artifact)
        return str(wanted_path(artifact))

    @plainly
    def asked(self, *rules: str) -> list[str]:
        """What a target asks for: all that is stale; of named rules also the intermediates that are not there."""
        if not rules:
            return [
                artifact.path for artifact in self.plan.stale(self.graph) if not artifact.temporary
            ]
        wanted = (artifact for artifact in self.graph if artifact.rule in rules)
        return [
            artifact.path for artifact in wanted if self.plan.state(artifact) is not State.FRESH
        ]

    def every(self, *rules: str) -> list[str]:
        """All files of some rules, fresh or stale; those that are built on demand only are left out."""
        wanted = (
            artifact for artifact in self.graph if artifact.rule in rules and not artifact.on_demand
        )
        return [path for artifact in wanted for path in artifact.outputs]

    def _leave(self, name: str, request: Any) -> str:
        """Leave what a script is asked as a file, and return its path."""
        path = RUN_STATE / f"{name}.json"
        recipes.write_json(path, request)
        return str(path)

    def references_file(self) -> str:
        """What scripts/hub_lock.py is asked: every hub reference of the chosen models."""
        return self._leave(
            "references", [vars(want) for want in hub_sources(self.config, self.graph.names)]
        )

    def manifest_file(self) -> str:
        """What scripts/publish.py is asked: what belongs on the hub."""
        artifact = {name: list(self.graph.of(name).values()) for name in self.graph.names}
        return self._leave("publish", manifest(self.config, artifact))

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
            artifact.model for artifact in self._building.values() if artifact.rule in LONG_STEPS
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
                raise NotReady("\n".join(lines))

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
            from lib.forecast.outlook import look

            outlook = look(self.graph, self.plan.builds(self._building.values()), cores)
            if not outlook.fits:
                raise DiskFull(outlook.refusal(self.config.reclaim))

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

    def pattern(self, path: str) -> "Pattern":
        """The artifacts of a rule."""
        return Pattern(self, path)

    def corpus_origin(self, file: str) -> list[str]:
        """Where a corpus comes from, as the flags of scripts/corpus.py."""
        corpus = self.config.corpora[file.rpartition(".")[0]]
        if corpus.path:
            return ["--path", corpus.path]
        if corpus.url:
            return ["--url", corpus.url, "--sha256", corpus.sha256]
        return ["--hub", corpus.reference(), "--file", corpus.file]

    def reclaimed(self, rule: str) -> str:
        """A regular expression for the merges' models or the conversions' names that are deleted once nothing needs them."""
        if not self.config.reclaim:
            return "(?!)"
        found = [
            artifact for artifact in self.graph if artifact.rule == rule and artifact.temporary
        ]
        names = [
            artifact.model if rule == "merge" else Path(artifact.path).stem for artifact in found
        ]
        return "|".join(map(re.escape, names)) or "(?!)"

    def conversion_names(self, own: bool = False) -> str:
        """A regular expression for the conversions' file names, which look like quants' otherwise.

        own: for those that are GGUF files of the user's instead.
        """
        names = (
            f"{name}-{model.conversion}"
            for name, model in self.config.models.items()
            if model.gguf is not None and bool(model.own_gguf) is own
        )
        return "|".join(map(re.escape, names)) or "(?!)"

    def models_with(self, own: str) -> str:
        """A regular expression for the models with a file of the user's own, say `own_imatrix`."""
        names = [name for name, model in self.config.models.items() if getattr(model, own)]
        return "|".join(map(re.escape, names)) or "(?!)"


class Pattern:
    """The files of a rule: its path with wildcards, and what a concrete one is made by."""

    def __init__(self, session: Session, path: str):
        self._session, self.path = session, path
        self.record = recipes.path_of(path)
        beside = path.removeprefix("results/")
        self.log, self.benchmark = f"logs/{beside}.log", f"benchmarks/{beside}.tsv"

    def made(self, wildcards) -> Artifact:
        """The artifact that the wildcards stand for."""
        return self._session.find(self.path.format(**dict(wildcards.items())))

    @plainly
    def wanted(self, wildcards) -> list[str]:
        """The wanted recipe; nothing where the artifact is fresh."""
        artifact = self.made(wildcards)
        return (
            [self._session.wanted(artifact)] if self._session.is_stale(artifact, wildcards) else []
        )

    @plainly
    def inputs(self, wildcards, *roles: str) -> list[Artifact]:
        """What a stale artifact is made from, in these roles (`model` is every role that begins with it)."""
        artifact = self.made(wildcards)
        if not self._session.is_stale(artifact, wildcards):
            return []
        needed = {**artifact.inputs, **artifact.uses}
        return [up for role, up in needed.items() if role.split(" ")[0] in roles]

    def option(self, name: str) -> Callable:
        """A params function: one of the artifact's options, nothing where the config leaves it out."""
        return lambda wildcards: self.made(wildcards).options.get(name, [])

    def flags(self, spell: Callable[[dict], list[str]]) -> Callable:
        """A params function: the artifact's options as the tool's flags."""
        return lambda wildcards: spell(self.made(wildcards).options)


def size_of(paths: Iterable[str]) -> int:
    """Bytes of what a step reads, from the records beside it; 0 where nothing is known yet."""
    records = (recipes.read(str(path)) for path in paths)
    return sum(record.bytes for record in records if record)


def needs_of(resource: str, step: str, wildcards, input, attempt: int = 1) -> int:
    """One resource of a step, as lib/stages/resources.py estimates it."""
    size = size_of(input)
    if resource == "mem_mb":
        return resources.mem_mb(step, size, attempt)
    if resource == "runtime":
        return resources.runtime_min(step, size, attempt)
    return resources.disk_mb(step, size)

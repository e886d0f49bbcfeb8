"""The artifacts of a rule: what the sections of a rule ask, and get for concrete wildcards."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lib.errors import plainly
from lib.forecast import resources
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.stages.registry import STAGES

if TYPE_CHECKING:
    from lib.run.session import Session


class Pattern:
    """The files of a rule: its path with wildcards, and what a concrete one is made by.

    path, record, log, benchmark: with wildcards, for the rule's output, log and benchmark.
    """

    def __init__(self, session: "Session", path: str):
        self._session, self.path = session, path
        self.record = recipes.path_of(path)
        beside = path.removeprefix("results/")
        self.log, self.benchmark = f"logs/{beside}.log", f"benchmarks/{beside}.tsv"

    def made(self, wildcards) -> Artifact:
        """The artifact that the rule makes for these wildcards."""
        return self._session.find(self.path.format(**dict(wildcards.items())))

    @plainly
    def wanted(self, wildcards) -> list[str]:
        """The wanted recipe; nothing where the artifact is fresh."""
        artifact = self.made(wildcards)
        if not self._session.is_stale(artifact, wildcards):
            return []
        return [self._session.wanted(artifact)]

    @plainly
    def inputs(self, wildcards, *roles: str) -> list[Artifact]:
        """What a stale artifact is made from, in these roles (`model`: all that begin with it)."""
        artifact = self.made(wildcards)
        if not self._session.is_stale(artifact, wildcards):
            return []
        needed = {**artifact.inputs, **artifact.uses}
        return [up for role, up in needed.items() if role.split(" ")[0] in roles]

    def option(self, name: str) -> Callable:
        """A params function: one of the artifact's options, nothing where it has none such."""
        return lambda wildcards: self.made(wildcards).options.get(name, [])

    def flags(self, spell: Callable[[dict], list[str]]) -> Callable:
        """A params function: the artifact's options as the tool's flags."""
        return lambda wildcards: spell(self.made(wildcards).options)

    def threads(self, wildcards) -> int:
        """Threads of a job, as its stage says."""
        artifact = self.made(wildcards)
        return STAGES[artifact.rule].threads(_read_by(artifact))

    def need(self, resource: str, wildcards, attempt: int, gpu: bool) -> int:
        """One of a job's resources, by its stage, its input and what it runs a model over.

        gpu: it runs on a GPU.
        """
        artifact = self.made(wildcards)
        stage, size = STAGES[artifact.rule], _read_by(artifact)
        if resource == "mem_mb":
            return resources.mem_mb(stage, size, attempt)
        if resource == "runtime":
            return resources.runtime_min(stage, size, attempt, tokens_of(artifact), gpu)
        return resources.disk_mb(stage, size)


def _read_by(artifact: Artifact) -> int:
    """Bytes of weights that a step reads, from the records; 0 where nothing is known yet."""
    counted = artifact.inputs_in(STAGES[artifact.rule].reads)
    records = (recipes.read(up.path) for up in counted)
    return sum(record.bytes for record in records if record)


def tokens_of(artifact: Artifact) -> int:
    """Tokens that a step runs a model over: chunks x context; 0 where the config leaves it open."""
    options = artifact.options
    return (options.get("chunks") or 0) * (options.get("context") or 0)

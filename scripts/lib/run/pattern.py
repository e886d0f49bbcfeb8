"""The artifacts of a rule: what the rule's sections need to know for given wildcards."""

import sys
from collections.abc import Callable

from lib.errors import plainly
from lib.forecast import resources
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.layout import log_file
from lib.run.session import Session
from lib.stages.registry import STAGES


class Pattern:
    """The artifacts that a rule makes, under one path with wildcards.

    path, record, log, benchmark: paths with wildcards, for the rule's output, log and benchmark.
    """

    def __init__(self, session: Session, path: str):
        self._session, self.path = session, path
        self.record = recipes.path_of(path)
        self.log, self.benchmark = log_file(path), f"benchmarks/{path.removeprefix('results/')}.tsv"

    def made(self, wildcards) -> Artifact:
        """The artifact that the rule makes for these wildcards. Raises UserError if it is none."""
        return self._session.find(self.path.format(**dict(wildcards.items())))

    @plainly
    def wanted(self, wildcards) -> list[str]:
        """The path of the wanted recipe, as a list; empty if the artifact is fresh."""
        artifact = self.made(wildcards)
        if not self._session.is_stale(artifact, wildcards):
            return []
        return [self._session.wanted(artifact)]

    @plainly
    def inputs(self, wildcards, *roles: str) -> list[Artifact]:
        """The inputs of a stale artifact in these roles.

        Empty if the artifact is fresh, or is taken from the store without them.

        roles: `model` also means `model NAME`. Among them may be those of what the step uses.
        """
        artifact = self.made(wildcards)
        if not self._session.is_stale(artifact, wildcards) or not self._session.waits(artifact):
            return []
        used = (up for role, up in artifact.uses.items() if role.split(" ")[0] in roles)
        needed = (*artifact.inputs_in(roles), *used)
        return [*filter(None, (self._session.read_as(artifact, up) for up in needed))]

    @plainly
    def after(self, wildcards) -> list[str]:
        """The paths of notes on what has to be deleted before a stale artifact is made or taken."""
        artifact = self.made(wildcards)
        if not self._session.main or not self._session.is_stale(artifact):
            return []
        return [note.path for note in self._session.cooling.after(artifact)]

    def option(self, name: str) -> Callable:
        """A function for `params:` that gives an option of the artifact, or [] if it is not set."""
        return lambda wildcards: self.made(wildcards).options.get(name, [])

    def flags(self, spell: Callable[[dict], list[str]]) -> Callable:
        """A function for `params:` that gives the artifact's options as flags, by `spell`."""
        return lambda wildcards: spell(self.made(wildcards).options)

    def threads(self, wildcards) -> int:
        """Threads that a job counts for, by its stage, the size of its inputs and the machine."""
        artifact = self.made(wildcards)
        if self._session.taken(artifact) is not None:
            return 1
        stage, jobs = STAGES[artifact.rule], self._session.jobs[artifact.rule]
        return self._session.machine.threads(stage, _read_by(artifact), jobs)

    def priority(self, wildcards) -> int:
        """The job's priority: of those that can start, the highest start first."""
        return STAGES[self.made(wildcards).rule].priority

    def need(self, resource: str, wildcards, attempt: int) -> int:
        """A resource of a job: `mem_mb`, `disk_mb` and `gpu_mb` in MiB, `runtime` in minutes.

        attempt: 1 for the first; later ones get more.
        """
        artifact = self.made(wildcards)
        # A second attempt is one that the store has failed, and which builds.
        if attempt == 1 and (taken := self._session.taken(artifact)) is not None:
            return resources.of_copy(resource, taken)
        stage, size = STAGES[artifact.rule], _read_by(artifact)
        gpu = self._session.machine.has_gpu(stage)
        if resource == "gpu_mb":
            # A step that is too large for the GPUs that are there is tried all the same.
            most = self._session.machine.gpu_mb or sys.maxsize
            return min(resources.gpu_mb(stage, size), most) if gpu else 0
        if resource == "mem_mb":
            return resources.mem_mb(stage, size, attempt)
        if resource == "runtime":
            return resources.runtime_min(stage, size, attempt, resources.tokens_of(artifact), gpu)
        return resources.disk_mb(stage, size)


def _read_by(artifact: Artifact) -> int:
    """Bytes of weights that a step reads, from its inputs' records; 0 if there are none yet."""
    counted = artifact.inputs_in(STAGES[artifact.rule].reads)
    records = (recipes.read(up.path) for up in counted)
    return sum(record.bytes for record in records if record)

"""An artifact: a file or directory that Quantmill builds, and the recipe by which it is built."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lib.record import bound as bounds
from lib.record import recipe as recipes
from lib.record.bound import Bound
from lib.record.code import code_digest


@dataclass(eq=False)
class Artifact:
    """A file or directory that one run of a rule builds.

    path: the file or directory, relative to the working directory; the first of `outputs`.
    rule: the rule that builds it. model: the model that it belongs to; None if models share it.
    options: the options in the config that decide its bytes.
    inputs: {role: artifact that it is made from}.
    unread: roles of inputs that the step does not read: it is stale with them, and does not wait.
    uses: {role: artifact that the step needs, but that is no part of the recipe} (tools).
    sources: {name: function that returns the identity of a source from outside}.
    tools: {name: version} of the tools that decide its bytes.
    outputs: the paths of all that the rule makes; by default `path` alone.
    directory: it is a directory.
    intermediate: it exists to make others. Once it is deleted, it is built again only if something
        stale is made from it.
    temporary: it is deleted as soon as nothing in the run needs it.
    links: it is a link, or a directory of links, to files that are kept elsewhere.
    file: the user's own file that it is made from, as written in the config.
    bound: where the same recipe gives the same bytes; by default what its stage declares.
    on_demand: it is built only if a target asks for it by name.
    describes: it describes other artifacts and takes seconds to build. `snakemake accept` does not
        accept it as it is: it is built again after the others are accepted.
    """

    path: str
    rule: str
    model: str | None
    options: dict[str, Any]
    inputs: dict[str, "Artifact"] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    uses: dict[str, "Artifact"] = field(default_factory=dict)
    sources: dict[str, Callable[[], Any]] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    directory: bool = False
    intermediate: bool = False
    temporary: bool = False
    links: bool = False
    file: str | None = None
    bound: Bound | None = None
    on_demand: bool = False
    describes: bool = False

    def __post_init__(self):
        self.outputs = self.outputs or (self.path,)
        self.bound = self.bound or bounds.OF_RULE.get(self.rule, Bound.MACHINE)

    @property
    def reproducible(self) -> bool:
        """Whether the same recipe gives the same bytes, on one machine at least."""
        return self.bound is not Bound.NEVER

    @property
    def read(self) -> dict[str, "Artifact"]:
        """The inputs that the step reads."""
        return {role: up for role, up in self.inputs.items() if role not in self.unread}

    @property
    def needed(self) -> tuple["Artifact", ...]:
        """All that the step waits for: the inputs that it reads, and what it uses."""
        return (*self.read.values(), *self.uses.values())

    def inputs_in(self, roles: Collection[str]) -> list["Artifact"]:
        """The inputs whose role begins with one of these words; all inputs if `roles` is empty.

        For example `form` finds the role `form Q8_0`.
        """
        inputs = self.inputs.items()
        return [up for role, up in inputs if not roles or role.split(" ")[0] in roles]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides the bytes, in plain JSON types (lib/record/recipe.py)."""
        return {
            "step": self.rule,
            "options": recipes.normalise(self.options),
            "inputs": {role: up.digest for role, up in self.inputs.items()},
            "sources": recipes.normalise({name: ask() for name, ask in self.sources.items()}),
            "tools": self.tools,
            "code": code_digest(self.rule),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the recipe."""
        return recipes.digest(self.recipe, normal=True)


def in_order(
    artifacts: Iterable[Artifact],
    leave: Callable[[Artifact], bool] = lambda artifact: False,
    alone: Callable[[Artifact], bool] = lambda artifact: False,
) -> list[Artifact]:
    """These artifacts and all that they need, each once and after what it needs.

    leave: whether an artifact, and what only it needs, is left out. alone: whether it is kept, and
    what only it needs is left out.
    """
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.path not in found and not leave(artifact):
            if not alone(artifact):
                for up in (*artifact.uses.values(), *artifact.inputs.values()):
                    visit(up)
            found[artifact.path] = artifact

    for artifact in artifacts:
        visit(artifact)
    return list(found.values())

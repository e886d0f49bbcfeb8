"""An artifact: one thing that is built, and the recipe by which it is."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lib.record import recipe as recipes
from lib.record.code import code_digest


@dataclass(eq=False)
class Artifact:
    """One thing that is built.

    path: the file or the directory, relative to the working directory; the first of `outputs`.
    rule: the rule that makes it. model: the model that it is of; None where models share it.
    options: what the config says of it. inputs: {role: artifact} of what it is made from.
    uses: {role: artifact} of what is needed to make it, and no part of the recipe (tools).
    sources: {name: function that gives the identity} of what comes from outside.
    tools: {name: version} of what decides its bytes.
    outputs: all its files, where there is more than one.
    directory: it is a directory.
    intermediate: others are made from it; once it is deleted, it is built again only when
        something stale is made from it.
    temporary: it is deleted as soon as nothing in the run needs it.
    links: a link, or a directory of links, to files that are kept elsewhere.
    file: the user's own file that it is made from, as the config writes it.
    reproducible: the same recipe gives the same bytes.
    on_demand: it is built only where a target asks for it by name.
    describes: it tells of others, in seconds: it is made anew where others are accepted as they
        are (`snakemake accept`).
    """

    path: str
    rule: str
    model: str | None
    options: dict[str, Any]
    inputs: dict[str, "Artifact"] = field(default_factory=dict)
    uses: dict[str, "Artifact"] = field(default_factory=dict)
    sources: dict[str, Callable[[], Any]] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    directory: bool = False
    intermediate: bool = False
    temporary: bool = False
    links: bool = False
    file: str | None = None
    reproducible: bool = True
    on_demand: bool = False
    describes: bool = False

    def __post_init__(self):
        self.outputs = self.outputs or (self.path,)

    def inputs_in(self, roles: Collection[str]) -> list["Artifact"]:
        """Its inputs in these roles (`model`: all that begin with it); no roles: all of them."""
        inputs = self.inputs.items()
        return [up for role, up in inputs if not roles or role.split(" ")[0] in roles]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides the bytes, as lib/record/recipe.py describes it."""
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

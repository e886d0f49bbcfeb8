"""The types of the preflight: a row of its table, and the facts that a family's check may ask for.

A family's own check has the form `preflight(inspector, name, model)` and yields rows about one
model of the config: `name` is its name, `model` its section (lib/config/schema.Model). The planner
imports this module, so it uses the standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

# Keys of config.json that must be equal for tensors to be merged or compared one with another.
SHAPE = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "num_hidden_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of the preflight's table.

    subject: the model or the key path that was checked. state: `ok`; `note`: worth knowing, but the
    build can go on; `problem`: the build would fail. text: a sentence on the result.
    """

    subject: str
    state: Literal["ok", "note", "problem"]
    text: str


class Inspector(Protocol):
    """The facts about a config's models that are known before any model is built.

    models: {name: its section} of the config.
    cuda: whether the machine that builds has a CUDA GPU; None: not known (a cluster).
    architectures, projectors, drafts: names of the architectures that llama.cpp's converter
    supports, and of those whose projector, or layers for multi-token prediction, it can convert
    alone; None: the converter is not installed yet.
    """

    models: Mapping[str, Any]
    cuda: bool | None
    architectures: set[str] | None
    projectors: set[str] | None
    drafts: set[str] | None

    def config(self, reference: str) -> dict[str, Any] | None:
        """The config.json of a model, or of a merge's base; None if it cannot be read yet.

        reference: the name of a model of the config, a directory or a hub id.
        """

    def clash(self, one: str, other: str) -> str | None:
        """A token id that means different tokens in two models, in words; None if there is none.

        one, other: references as `config` takes them.
        """

    def layers(self, name: str) -> int | None:
        """The number of layers of a model of the config; None if it is not known yet."""

    def fits(
        self, name: str, subject: str, text: str, layers: int | None, columns: int | None
    ) -> Row:
        """Compare a user's file with the model: the row is a `problem` if they differ, else `ok`.

        text: what the file is. layers, columns: their numbers as found in the file; None: unknown.
        """

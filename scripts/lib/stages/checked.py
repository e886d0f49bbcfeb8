"""What is looked at before a build: what a check finds, and what a family's checks can ask.

A family's own check has the form `preflight(inspector, name, model)` and gives rows about one model
of the config: `name` is its name, `model` what the config says of it (lib.config.schema.Model).
Imported by the planner: standard library only.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is about, how that stands, and a sentence on it.

    note: worth knowing, and no reason not to build. problem: the build would fail of it.
    """

    subject: str
    state: Literal["ok", "note", "problem"]
    text: str


class Inspector(Protocol):
    """What is known of the models of a config before any of them is built.

    cuda: whether there is a CUDA GPU where they are built; None: not known (a cluster).
    architectures: the names that llama.cpp's converter knows; None: it is not there yet.
    """

    cuda: bool | None
    architectures: set[str] | None

    def config(self, reference: str) -> dict[str, Any] | None:
        """config.json of a model, of the base of a merge; None where it cannot be known yet.

        reference: the name of a model of the config, a directory or a hub id.
        """

    def layers(self, name: str) -> int | None:
        """Layers of a model of the config; None where that cannot be known yet."""

    def fits(
        self, name: str, subject: str, text: str, layers: int | None, columns: int | None
    ) -> Row:
        """A row for a file in which so many layers, of so many columns, were found (None: unknown).

        A problem where the model has others; `text` says what the file is.
        """

"""What a family says in a card: one class a family, each in a module of its own.

This is code that decides a card's bytes. What a family is called, its colours and its place in the
plan lie apart, in lib/stages, so that a change of them makes no card stale.
"""

import shlex
from typing import Any

from lib.record.origins import Origins
from lib.record.recipe import Record


def command(*words: str) -> str:
    """A command line, quoted for a shell."""
    return shlex.join(words)


def text_named(calibration: dict[str, Any]) -> str:
    """A calibration text by its name and, where a record tells it, its hash."""
    sha256 = calibration.get("sha256")
    return f"`{calibration['corpus']}`" + (f" (sha256 `{sha256}`)" if sha256 else "")


class Lines:
    """What a family says in a card. Methods that tell nothing of most families return nothing here.

    about: what scripts/card.py tells. row: a line of its table of files, from scripts/card.py.
    repo: the repository that the card is of; None for the card of results/MODEL/.
    """

    name: str
    """The family's key in the config."""
    reads: tuple[str, ...] = ()
    """Keys of --about that it reads, and that templates get; absent ones are None."""
    has_tokenizer = False
    """Its forms hold the chat template: GGUF files, or model directories."""
    has_shards = False
    """The card of its repository counts the parts of each file."""

    def describe(self, about: dict[str, Any], forms: dict[str, Record], origins: Origins) -> None:
        """Add what the records of its forms tell to `about`, its command lines among them."""
        about["commands"][self.name] = []

    def heading(self, repo: str | None) -> str:
        """What a card's table of files calls its first column."""
        return "File"

    def branch(self, form: str) -> str:
        """The branch of a repository in which a form lies."""
        return "main"

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        """The cell of a card's table of files that leads to a form, as Markdown."""
        raise NotImplementedError

    def download(self, row: dict[str, Any], repo: str, name: str) -> str:
        """The command line that downloads a form."""
        raise NotImplementedError

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        """Command lines that use a form, with comments between."""
        raise NotImplementedError

    def run_note(self, row: dict[str, Any], repo: str | None) -> str:
        """What is to be said below these."""
        return ""

    def calibration(self, about: dict[str, Any]) -> str:
        """What the forms were calibrated with, as Markdown."""
        return ""

    def tags_of(self, about: dict[str, Any]) -> list[str]:
        """Tags that depend on how the forms were made."""
        return []

"""The lines of a model card about one family of forms. Each family has a class and a module.

This code decides a card's bytes. A family's title, its colours and its place in the plan are in
lib/stages instead, so a change of these makes no card stale.
"""

import shlex
from typing import Any

from lib.record.origins import Origins
from lib.record.recipe import Record


def command(*words: str) -> str:
    """The words of a command as one line, quoted for a shell."""
    return shlex.join(words)


def text_named(calibration: dict[str, Any]) -> str:
    """A calibration text's name and, if known, its hash, as Markdown.

    calibration: {corpus: its name, sha256: hex or None}.
    """
    sha256 = calibration.get("sha256")
    return f"`{calibration['corpus']}`" + (f" (sha256 `{sha256}`)" if sha256 else "")


class Lines:
    """The lines of a card about one family. A method here returns what suits most families.

    about: the facts for the card, as the docstring of scripts/card.py lists them.
    row: a row of the card's table of files, as scripts/card.py makes it.
    repo: the repository, org/name, that the card is for; None for the card of results/MODEL/.
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
        """Add to `about` what records tell of this family, such as the commands that built it.

        forms: {form: its record}. origins: the records of what the forms were made from.
        """
        about["commands"][self.name] = []

    def heading(self, repo: str | None) -> str:
        """The title of the first column in the card's table of files."""
        return "File"

    def branch(self, form: str) -> str:
        """The branch of the repository that holds a form."""
        return "main"

    def link(self, row: dict[str, Any], repo: str | None) -> str:
        """The cell of the table of files that links to a form, as Markdown."""
        raise NotImplementedError

    def download(self, row: dict[str, Any], repo: str, name: str) -> str:
        """The command that downloads a form: all of its branch. name: the model's."""
        revision = "" if row["branch"] == "main" else f" --revision {row['branch']}"
        return f"hf download {repo}{revision} --local-dir {row['directory']}"

    def run(self, row: dict[str, Any], repo: str | None, about: dict[str, Any]) -> list[str]:
        """Shell lines that run a form in some programs, each under a comment with its name."""
        raise NotImplementedError

    def run_note(self, row: dict[str, Any], repo: str | None) -> str:
        """A note below the lines of `run`, as Markdown; "" for none."""
        return ""

    def beside(
        self, files: list[tuple[Any, str]], row: dict[str, Any], repo: str | None
    ) -> list[str]:
        """A line for each file that is loaded beside a form, as Markdown.

        files: [({what, file, bytes} of forms.json, its size as text)].
        """
        return []

    def calibration(self, about: dict[str, Any]) -> str:
        """A sentence on what the forms were calibrated with, as Markdown; "" for none."""
        return ""

    def tags_of(self, about: dict[str, Any]) -> list[str]:
        """The card's tags that depend on how the forms were made."""
        return []

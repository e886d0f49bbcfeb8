"""What is declared of a family: a form in which people take a model, and all that is true of it.

Its lines in a card are code that decides a card's bytes, so they lie apart, in lib/cards. Here is
what the planner, the report's looks and publishing ask. Nothing here decides the bytes of weights:
what is asked for (`make`) stands in recipes, and titles and colours stand in none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from re import Pattern
from typing import Any

from lib.cards.registry import LINES
from lib.keys.section import Section
from lib.record.artifact import Artifact
from lib.stages.checked import Inspector, Row
from lib.stages.stage import Stage


@dataclass
class Forms:
    """What a family makes of one model.

    artifacts: all of it, each after what it is made from. forms: {form: artifact}, those that
    people load. evaluations, shards: {form: artifact}, of those that there are.
    """

    artifacts: list[Artifact] = field(default_factory=list)
    forms: dict[str, Artifact] = field(default_factory=dict)
    evaluations: dict[str, Artifact] = field(default_factory=dict)
    shards: dict[str, Artifact] = field(default_factory=dict)


class Family:
    """A form in which people take a model. Each is a subclass, in a module of its own, with one
    object, FAMILY; lib/cards/registry.py lists them.

    `model` is always the config's section of a model (lib/config/schema.Model), `name` its name.
    """

    name: str
    """The key of its section in the config, of its repository in `publish`, of its card's lines."""
    title: str
    """What people call it."""
    phrase: str
    """What a card says after the model's name, with its own blank: " as GGUF for llama.cpp"."""
    library: str
    """`library_name` of its cards: the hub's word for what loads it."""
    tags: tuple[str, ...] = ()
    """Tags of its cards."""
    note = ""
    """A sentence for the report: what limits where its forms run."""
    tag = ""
    """What is put beside the names of its forms where they do not tell the family."""
    colours: tuple[str, str]
    """In plots, on light and on dark paper, as #rrggbb."""
    diamond = False
    """Its marker in plots is a diamond, else a dot."""

    section: type[Section] | None = None
    """Its section of the config; None: it follows from others."""
    made = ""
    """What the section's key says of it, for config/README.md."""
    published = ""
    """What the repository's key in `publish` says of it."""
    repository_by_form = False
    """Whether each form may have a repository of its own, with {form} in the name."""
    form_pattern: Pattern[str] | None = None
    """What its forms are called, where no other family's may be called so; None: the user names
    them."""

    stages: tuple[Stage, ...] = ()
    """The stages of its own."""
    quantized: dict[str, bool] = {}
    """{rule that makes its forms: whether they are quantized}."""
    own_corpora: dict[str, str] = {}
    """{name: what it stands for} of texts that its tools bring along: no corpus may be called so."""
    needs_gpu = False
    """It can only be built and used on CUDA GPUs."""
    needs_safetensors = True
    """It cannot be made of a GGUF file."""

    @property
    def lines(self) -> Any:
        """What it says in a card (lib/cards/lines.py)."""
        return LINES[self.name]

    @property
    def has_quants(self) -> bool:
        """Whether any of its forms is quantized."""
        return any(self.quantized.values())

    # the config

    def corpora(self, model: Any) -> set[str]:
        """The texts that its section names."""
        return {self.own(model).corpus} if "corpus" in self.section.model_fields else set()

    def own(self, model: Any) -> Any:
        """Its section; None where the model has none."""
        return getattr(model, self.name, None)

    def names(self, model: Any) -> list[str]:
        """The forms that its section asks for."""
        return []

    def check(self, checks: Any, at: tuple, name: str, model: Any) -> None:
        """Report what is wrong with its section, which is there, at the key path `at`.

        checks: lib/config/checks.Checks, whose methods say what they report.
        """

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """What would fail later though the config is right; the section is there."""
        if self.needs_gpu and inspector.cuda is False:
            text = f"{self.title} needs a CUDA GPU, and there is none; "
            yield Row(name, "problem", f"{text}--config skip={self.name} leaves it out")

    # the plan

    def make(self, shared: Any, name: str, model: Any, weights: Artifact | None) -> Forms:
        """What its section asks for, which is there.

        shared: lib/stages/shared.Shared. weights: the model directory; None where the model is a
        GGUF file.
        """
        raise NotImplementedError

    def card_options(self, model: Any, forms: dict[str, Artifact]) -> dict[str, Any]:
        """What the config says for its card: options that `describe` of its lines reads."""
        return {}

    # publishing

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """{branch: [file of publish.py's manifest]} of a repository with all of its forms."""
        raise NotImplementedError

    def gated(self, made: Forms) -> dict[str, Artifact]:
        """{form: artifact} of those that are published and so must have been measured."""
        return {form: up for form, up in made.forms.items() if not up.intermediate}

    def made_from(self, name: str, made: Forms, merge: Artifact | None = None) -> dict[str, str]:
        """{name in the repository: path} of what is not published there, but its recipe is.

        merge: the model's, where it is one.
        """
        return {f"{name}-safetensors": merge.path} if merge else {}


def entry(artifact: Artifact, name: str) -> dict[str, Any]:
    """A file of the manifest. digest: of the wanted recipe, so that what is stale stays here."""
    return {"artifact": artifact.path, "name": name, "digest": artifact.digest}


def file_entry(artifact: Artifact) -> dict[str, Any]:
    """A file that has the same name in the repository."""
    return entry(artifact, PurePosixPath(artifact.path).name)

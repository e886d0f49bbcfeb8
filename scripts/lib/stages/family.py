"""The base class of a family: one format in which people load a model, such as GGUF files.

A family declares everything that is specific to its format: the config's section, the stages, the
artifacts, the branches on the hub, and the looks in reports. Its lines of a model card are in
lib/cards, because that code decides a card's bytes. Nothing here decides the bytes of weights:
recipes contain the artifacts that `make` declares, and no titles or colours.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from re import Pattern
from typing import Any, NamedTuple

from lib.cards.registry import LINES
from lib.keys.section import Section
from lib.record import bound as bounds
from lib.record.artifact import Artifact
from lib.stages import convert
from lib.stages.checked import Inspector, Row
from lib.stages.stage import Stage


@dataclass
class Forms:
    """The artifacts that a family makes of one model.

    artifacts: all of them, each after its inputs. forms: {form: artifact}, the files that people
    load. evaluations, shards: {form: artifact}, for the forms that have one. also: evaluations on
    further texts, {text: {form: artifact}}. tasks: scores, {task: {form: artifact}}. harness: those
    of the model's own weights, {task: artifact}; of no family. mixes: {form: its mix}. companions:
    {what it is: artifact}, files that are loaded beside a form.
    """

    artifacts: list[Artifact] = field(default_factory=list)
    forms: dict[str, Artifact] = field(default_factory=dict)
    evaluations: dict[str, Artifact] = field(default_factory=dict)
    also: dict[str, dict[str, Artifact]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Artifact]] = field(default_factory=dict)
    harness: dict[str, Artifact] = field(default_factory=dict)
    shards: dict[str, Artifact] = field(default_factory=dict)
    mixes: dict[str, Artifact] = field(default_factory=dict)
    companions: dict[str, Artifact] = field(default_factory=dict)

    @classmethod
    def together(cls, families: Iterable["Forms"]) -> "Forms":
        """What several families make of one model."""
        found = cls()
        for made in families:
            found.artifacts += made.artifacts
            found.forms |= made.forms
            found.evaluations |= made.evaluations
            for ours, theirs in ((found.also, made.also), (found.tasks, made.tasks)):
                for measured, artifacts in theirs.items():
                    ours.setdefault(measured, {}).update(artifacts)
            found.shards |= made.shards
            found.mixes |= made.mixes
            found.companions |= made.companions
        return found


class Speedometer(NamedTuple):
    """How the speed of a family's forms is measured."""

    engine: str
    """The engine that runs them, with its version: "llama.cpp b10605"."""
    command: list[str]
    """The program of scripts/ that measures one form, and its own options. It is called with those
    of lib/flags/speed.py too, and its last line is JSON: {backend: its name, prompt: [tokens a
    second, for each repetition], text: [the same]}."""
    uses: dict[str, Artifact] = {}
    """The tool's `environment` and `extension`, if it has such; it runs by that Python."""
    unfit: str = ""
    """Why this machine's figures would tell nothing; empty: they tell something."""


class Family:
    """One format in which people load a model.

    Each family is a subclass in a module of its own, with one object, FAMILY; lib/cards/registry.py
    lists them. In its methods `model` is the config's section of a model (lib/config/schema.Model)
    and `name` that model's name. Methods that need the family's own section (`corpora`, `names`,
    `check`, `preflight`, `repository_form`, `make`, `card_options`) are called only for models that
    have it.
    """

    name: str
    """Its key: of its section in the config, of its repository in `publish`, and in lib/cards."""
    title: str
    """Its name for people."""
    phrase: str
    """The words after the model's name in a card, joined without a space: " as GGUF for …"."""
    library: str
    """`library_name` of its cards: the hub's name of the software that loads it."""
    tags: tuple[str, ...] = ()
    """Tags of its cards."""
    note = ""
    """A sentence for the report on where its forms can run; empty: nothing limits it."""
    tag = ""
    """A label beside its forms' names in reports; empty: the names are clear without one."""
    colours: tuple[str, str]
    """Its colours in plots, as #rrggbb: one on light paper, one on dark paper."""
    diamond = False
    """Whether its marker in plots is a diamond; else it is a dot."""

    section: type[Section] | None = None
    """The class of its section of the config; None: it has no section."""
    section_says = ""
    """The description of the section's key, for config/README.md."""
    repository_says = ""
    """The description of its repository's key in `publish`, for config/README.md."""
    repository_by_form = False
    """Whether each form may have its own repository, with {form} in the repository's name."""
    form_pattern: Pattern[str] | None = None
    """Matches the names of its forms; forms of other families may not have such names. None: the
    user chooses the names."""

    stages: tuple[Stage, ...] = ()
    """The stages that belong to this family alone."""
    quantized: dict[str, bool] = {}
    """{rule: whether its forms are quantized}, for each rule that makes forms of this family."""
    own_corpora: dict[str, str] = {}
    """{name: description} of texts that its tools bring along; no corpus may have such a name."""
    needs_gpu = False
    """Whether it can be built and used on CUDA GPUs only."""
    by_base_logits = False
    """Whether its forms are measured against base logits, which llama.cpp makes of a conversion."""
    makes_forms = True
    """Whether what it makes are forms of the model, which are measured and compared."""
    needs_safetensors = True
    """Whether it needs a model directory, so that it cannot be made from a GGUF file."""

    @property
    def lines(self) -> Any:
        """The object that writes its lines of a model card (lib/cards/lines.Lines)."""
        return LINES[self.name]

    @property
    def bounds(self) -> dict[str, str]:
        """{rule: what the bytes are bound to}, of the rules that make its forms and what is behind.

        The words are those of lib/record/bound.Bound.
        """
        rules = (*self.quantized, *(stage.rule for stage in self.stages))
        return {rule: bounds.OF_RULE[rule].value for rule in dict.fromkeys(rules)}

    @property
    def has_quants(self) -> bool:
        """Whether any of its forms is quantized."""
        return any(self.quantized.values())

    # the config

    def corpora(self, model: Any) -> set[str]:
        """The names of the texts of the config that its section uses."""
        used = {self.own(model).corpus} if "corpus" in self.section.model_fields else set()
        return used - set(self.own_corpora)

    def references(self, model: Any) -> list[str]:
        """Directories and hub ids that its section names, beside what the model is made from."""
        return []

    def adapters_of(self, model: Any) -> list[str]:
        """Models of the config that its section takes extracted adapters of."""
        return []

    def own(self, model: Any) -> Any:
        """This family's section of the model; None if the model has none."""
        return getattr(model, self.name, None)

    def names(self, model: Any) -> list[str]:
        """The names of the forms that its section asks for.

        No two of a model may be equal or differ in case alone, whatever their families.
        """
        return []

    def check(self, checks: Any, at: tuple, name: str, model: Any) -> None:
        """Report mistakes in its section, by methods of `checks` (lib/config/checks.Checks).

        at: the section's key path.
        """

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """Rows on what would make the build fail later although the config is valid."""
        if self.needs_gpu and inspector.cuda is False:
            text = f"{self.title} needs a CUDA GPU, and there is none; "
            yield Row(name, "problem", f"{text}--config skip={self.name} leaves it out")
        if self.by_base_logits and model.evaluate is not None and model.gguf is None:
            yield from convert.preflight(inspector, name)

    def repository_form(self, model: Any, form: str) -> str:
        """What takes the place of {form} in the name of a form's own repository."""
        return form

    # the plan

    def make(self, shared: Any, name: str, model: Any, weights: Artifact | None) -> Forms:
        """Declare the artifacts that its section asks for.

        shared: lib/stages/shared.Shared. weights: the model directory; None if the model is a GGUF
        file.
        """
        raise NotImplementedError

    def cool(self, shared: Any, name: str, made: Forms) -> list[list[Artifact]]:
        """The notes with which its forms are deleted here, as lib/stages/cold.py declares them.

        A list for each form that can be. made: what `make` has declared.
        """
        return []

    def speedometer(self, shared: Any) -> Speedometer | None:
        """How the speed of its forms is measured; None: it cannot be.

        shared: lib/stages/shared.Shared.
        """

    def card_options(self, model: Any, forms: dict[str, Artifact]) -> dict[str, Any]:
        """Options for its card from the config; `describe` of its lines reads them."""
        return {}

    # publishing

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """{branch: [file of publish.py's manifest]} of a repository that holds all its forms."""
        raise NotImplementedError

    def published(self, made: Forms) -> dict[str, Artifact]:
        """{form: the artifact that is uploaded for it}."""
        return self.gated(made)

    def gated(self, made: Forms) -> dict[str, Artifact]:
        """{form: artifact} of the published forms, which `max_kld` requires to be measured."""
        return {form: up for form, up in made.forms.items() if not up.intermediate}

    def made_from(self, name: str, made: Forms, merge: Artifact | None = None) -> dict[str, str]:
        """{name in the repository: path} of artifacts of which only the recipe is published.

        merge: the merge that the model is; None if it is no merge.
        """
        return {f"{name}-safetensors": merge.path} if merge else {}


def entry(artifact: Artifact, name: str) -> dict[str, Any]:
    """A file of publish.py's manifest. name: in the repository; "": of a directory, all its files.

    digest: the wanted recipe's, so that a stale artifact is not published.
    """
    return {"artifact": artifact.path, "name": name, "digest": artifact.digest}


def file_entry(artifact: Artifact) -> dict[str, Any]:
    """A file of the manifest that keeps its name in the repository."""
    return entry(artifact, PurePosixPath(artifact.path).name)

"""The artifacts that follow from the config: their paths, their inputs and their recipes.

Nothing is built here. The disk is read only for what recipes contain: the content of outside files
(`Contents`) and the versions of tools. Recipes are computed when asked for, so a target of one
model costs the recipes of that model. Each family declares its artifacts in its own module
(lib/stages); here they are put together, and the report and the cards are added.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from lib.cards.registry import LINES
from lib.config.repositories import repositories
from lib.config.schema import Config, Model
from lib.hub.lock import Lock
from lib.planning.publishing import PLOT, card_options, local_card_options
from lib.record import cold
from lib.record.artifact import Artifact
from lib.record.contents import Contents
from lib.record.layout import STUDIES
from lib.record.tools import package_version
from lib.stages import demo, environments, harness, similarity
from lib.stages.cold import KIND
from lib.stages.family import Forms
from lib.stages.registry import FAMILIES, FULL_WEIGHTS, family_of
from lib.stages.shared import Shared
from lib.studies.lock import Chosen

REPORT = ("csv", "svg", "html")
MEASURED = "`snakemake --cores all` measures it, then `snakemake choose`"
HOW_TO_CHOOSE = f"{MEASURED} takes its winner"
REPORT_TOOLS = ("matplotlib", "textalloc")


@dataclass(frozen=True)
class ModelArtifacts:
    """The artifacts that the config declares for one model.

    by_path: {path: artifact}, each after its inputs. families: {family: its artifacts}; the merge
    counts as the family of full weights.
    """

    by_path: dict[str, Artifact]
    families: dict[str, Forms]


class Graph:
    """All artifacts of a config.

    only: names of the models and studies that it covers; None: all. skip: names of families to
    leave out.
    """

    def __init__(
        self,
        config: Config,
        contents: Contents,
        lock: Lock,
        only: Iterable[str] | None = None,
        skip: Iterable[str] = (),
    ):
        self.config, self.contents, self.lock = config, contents, lock
        self.shared = Shared(config, contents, lock)
        # Of models and studies.
        self.names = [
            name
            for name in config.entries
            if (only is None or name in set(only)) and name not in config.waiting
        ]
        self._skip = set(skip)
        self._models: dict[str, ModelArtifacts] = {}
        self._notes: dict[str, list[list[Artifact]]] = {}
        self._noted: dict[str, dict[str, Artifact]] = {}

    def __iter__(self) -> Iterator[Artifact]:
        """Every artifact that the chosen models and studies declare."""
        for name in self.names:
            yield from self.artifacts(name).values()

    def artifacts(self, name: str) -> dict[str, Artifact]:
        """{path: artifact} of one model or study."""
        return self.model(name).by_path

    def model(self, name: str) -> ModelArtifacts:
        """The artifacts of one model or study, declared at the first call."""
        if name not in self._models:
            if name in self.config.studies:
                declared = self.shared.study(name).artifacts
                self._models[name] = ModelArtifacts({a.path: a for a in declared}, {})
            else:
                self._models[name] = self._declare(name, self.config.models[name])
                if KIND in self.config.reclaim:
                    notes = {note.path: note for form in self.cold_notes(name) for note in form}
                    self._models[name].by_path.update(notes)
        return self._models[name]

    def cold_notes(self, name: str) -> list[list[Artifact]]:
        """The notes with which files of a model are deleted here (lib/record/cold.py), by form."""
        if name not in self._notes:
            families = self.model(name).families.items()
            notes = [FAMILIES[key].cool(self.shared, name, made) for key, made in families]
            self._notes[name] = [form for family in notes for form in family]
        return self._notes[name]

    def note(self, artifact: Artifact) -> Artifact | None:
        """The note with which an artifact is deleted here; None if it never is."""
        if artifact.model not in self.config.models or artifact.intermediate:
            return None
        if artifact.model not in self._noted:
            forms = self.cold_notes(artifact.model)
            self._noted[artifact.model] = {note.path: note for form in forms for note in form}
        return self._noted[artifact.model].get(cold.note_of(artifact.path))

    def find(self, path: str) -> Artifact | None:
        """The artifact with this path among its outputs; None if the config declares none."""
        if path.endswith(cold.SUFFIX):
            finished = self.find(path.removesuffix(cold.SUFFIX))
            return finished and self.note(finished)
        parts = PurePosixPath(path).parts
        if parts[:2] == ("results", STUDIES):
            parts = parts[1:]
        if len(parts) > 2 and parts[0] in ("results", STUDIES):
            known = parts[1] in self.config.entries and parts[1] not in self.config.waiting
            found = self.artifacts(parts[1]) if known else {}
            return found.get(path) or next((a for a in found.values() if path in a.outputs), None)
        return self.shared.find(path) or self._all_shared.find(path)

    def waits(self, path: str) -> str | None:
        """Why a path is not declared, if its model or study waits for a choice; else None."""
        parts = PurePosixPath(path).parts
        if parts[:1] != ("results",):
            return None
        name = next(iter(parts[2 if parts[1:2] == (STUDIES,) else 1 :]), None)
        if name in self.config.waiting:
            return self.why_waiting(name)
        study, chosen = self.config.studies.get(name), self.config.chosen.get(name, Chosen())
        if study and len(chosen.rounds) < len(study.each_round) - 1:
            return f"{name} has a round to choose: {MEASURED} says who stays"
        return None

    def why_waiting(self, name: str) -> str:
        """The words that a model or a study of `Config.waiting` waits, and how that ends."""
        return f"{name} waits for the study {self.config.waiting[name]}: {HOW_TO_CHOOSE}"

    @cached_property
    def _all_shared(self) -> Shared:
        """`shared` with every artifact declared, for a target that names one."""
        _ = self.shared.llama_cpp
        for name in ("base", "code", "prose"):
            demo.model(self.shared, name)
        for file in environments.FILES.glob("*.txt"):
            environments.by_environment(self.shared, file.stem)
        for name in environments.EXTENDED:
            environments.by_extension(self.shared, name)
        for name in self.config.corpora:
            for suffix in (".txt", ".parquet"):
                self.shared.corpus(name, suffix)
        for name in self.config.entries:  # what waits uses the same, whoever wins
            self.artifacts(name)
        return self.shared

    def _declare(self, name: str, model: Model) -> ModelArtifacts:
        if not model.is_made and not model.families():
            return ModelArtifacts({}, {})
        weights = None if model.own_gguf else self.shared.weights(name)
        families: dict[str, Forms] = {}
        if model.is_made:
            families[FULL_WEIGHTS] = Forms([weights])
        for family in model.families():
            if family.name not in self._skip:
                families[family.name] = family.make(self.shared, name, model, weights)
        made = Forms.together(families.values())
        if model.evaluate is not None and model.evaluate.harness:
            made.harness = harness.scores(self.shared, name, model.evaluate, weights)
            made.artifacts += made.harness.values()
        declared = made.artifacts
        if model.is_made or model.has_forms:  # else there is nothing to tell of
            report = self._report(name, weights or made.artifacts[0], made)
            declared = [*declared, report, *self._cards(name, model, report, families)]
        if model.similarity is not None:
            declared = [*declared, *similarity.declare(self.shared, name, model)]
        return ModelArtifacts({artifact.path: artifact for artifact in declared}, families)

    def _report(self, name: str, weights: Artifact, made: Forms) -> Artifact:
        here = f"results/{name}/report"
        inputs = {f"form {form}": up for form, up in made.forms.items()}
        inputs |= {f"evaluation {form}": up for form, up in made.evaluations.items()}
        for role, measured in (("also", made.also), ("task", made.tasks)):
            for where, by_form in measured.items():
                inputs |= {f"{role} {where} {form}": up for form, up in by_form.items()}
        inputs |= {f"harness {task}": up for task, up in made.harness.items()}
        inputs |= {f"mix {form}": up for form, up in made.mixes.items()}
        inputs |= {f"beside {what}": up for what, up in made.companions.items()}
        # A report does not need an intermediate itself: the record has its size, even after the
        # intermediate was reclaimed.
        inputs = {role: up for role, up in inputs.items() if not up.intermediate}
        described = {f: _described(f, up, made) for f, up in made.forms.items()}
        return Artifact(
            f"{here}/quality.csv",
            "report",
            name,
            {"model": name, "weights": weights.path, "forms": described},
            inputs=inputs or {"model": weights},
            tools={name: package_version(name) for name in REPORT_TOOLS},
            outputs=tuple(f"{here}/quality.{kind}" for kind in REPORT),
            describes=True,
        )

    def _cards(
        self, name: str, model: Model, report: Artifact, families: dict[str, Forms]
    ) -> Iterator[Artifact]:
        """The model's card, and one for each repository.

        Only those of repositories depend on how the model is published.
        """
        plot = f"report/{PLOT}"
        local = local_card_options(self.config, self.lock, name, families, plot)
        cards = {f"results/{name}/README.md": local}
        for repository in repositories(model):
            made = families.get(repository.family, Forms())
            if repository.form is None or repository.form in made.forms:
                only = (repository.family, repository.form)
                said = card_options(self.config, self.lock, name, families, only)
                cards[repository.card(name)] = said
        for path, said in cards.items():
            inputs = {"report": report, **report.inputs}
            # A repository's card counts the parts of each file; the model's own only says where
            # they are.
            if said is not local and LINES[said["families"][0]].has_shards:
                shards = families[said["families"][0]].shards
                inputs |= {f"shards {form}": up for form, up in shards.items()}
            yield Artifact(
                path,
                "card",
                name,
                {**report.options, "about": said},
                inputs=inputs,
                unread=("report",),  # a card links to its plot
                sources=self._template(said["template"]),
                describes=True,
                on_demand=said is not local,
            )

    def _template(self, path: str | None) -> dict[str, Any]:
        return {"card template": lambda: {"sha256": self.contents.file(path)}} if path else {}


def _described(form: str, artifact: Artifact, made: Forms) -> dict[str, Any]:
    """The facts on a form that a report's recipe contains."""
    family = family_of(artifact.rule)
    quantized = family.quantized[artifact.rule]
    said = {"file": artifact.path, "family": family.name, "quantized": quantized}
    said["evaluation"] = form in made.evaluations
    if "type" in artifact.options or form in made.mixes:
        said["type"] = artifact.options.get("type", "mix")
        said["imatrix"] = "imatrix" in artifact.inputs
    return said

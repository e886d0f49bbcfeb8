"""Studies: a grid of merges, each converted and measured, of which one is chosen.

A candidate is a merge and a conversion like those of a model. Both are deleted once it is measured,
unless the study keeps them.
"""

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from lib.formats.merge_references import as_mapping, merge_references
from lib.keys import values
from lib.keys.section import Choice, Flag, Number, Read, Section, TextList
from lib.record.artifact import Artifact
from lib.stages.checked import Inspector, Row
from lib.stages.convert import convert
from lib.stages.evaluation import EvaluateStage, TaskFile, to_tasks
from lib.stages.merge import merge, seed_of
from lib.stages.stage import Stage
from lib.studies import grid
from lib.studies.grid import Candidate
from lib.studies.lock import Chosen

REPORT = ("csv", "svg", "html")
By = Literal["ranks", "sum", "pareto"]
CONVERSION = "BF16"


def to_keep(value: Any) -> int | str:
    """How many candidates stay: `half`, or a whole number."""
    return value if value == "half" else values.to_number(value, 1, None, whole=True)


def to_rows(value: Any) -> list[dict[str, Any]]:
    """A list of mappings of plain values."""
    return [values.plain(values.to_mapping(entry)) for entry in values.to_list(value)]


def to_vary(value: Any) -> dict[str, list[Any]]:
    """{name: a list of at least one value}."""
    found = {
        name: values.to_list(entry)
        for name, entry in values.plain(values.to_mapping(value)).items()
    }
    for name, entries in found.items():
        if not entries:
            raise ValueError(f"{name} has no values")
    return found


def to_weights(value: Any) -> dict[str, float]:
    """{figure: a finite number above 0}."""
    found = {}
    for figure, weight in values.to_mapping(value).items():
        problem = ValueError(f"{figure}: {values.show(weight)} is not a finite number above 0")
        try:
            found[figure] = values.to_number(weight, 0, None, whole=False)
        except ValueError:
            raise problem from None
        if not found[figure]:
            raise problem
    return found


def to_seed(value: Any) -> int | str:
    """A number, or `$name`."""
    if isinstance(value, str) and list(grid.names_in(value)):
        return value
    return values.to_number(value, 0, 2**32 - 1, whole=True)


class Measure(Section):
    """What is measured of each candidate and of each model that is merged."""

    perplexity: TextList = Field([], description="Texts of `corpora`, on which it is measured.")
    kld: TextList = Field(
        [],
        description="Texts on which the KL divergence from each merged model is measured: how far "
        "a candidate went from it.",
    )
    tasks: Read(dict[str, TaskFile], to_tasks, dict[str, str | TaskFile]) = Field(
        {}, description="Files of tasks, as under `evaluate`."
    )
    context: Number(int, 8) = Field(512, description="Tokens in a chunk.")
    chunks: Number(int, 1) | None = Field(
        None, description="Number of chunks of each text to use; all if left out."
    )


class Round(Section):
    """One of several rounds: many candidates are measured on little, and few on much."""

    chunks: Number(int, 1) | None = Field(
        None, description="Chunks of each text in this round; left out, those of `measure`."
    )
    keep: Read(int | str, to_keep, int | str) | None = Field(
        None, description="How many stay for the next round: `half`, or a number."
    )


class Choose(Section):
    """Which candidate is the best."""

    minimise: TextList = Field(
        [],
        description="Figures that should be low: `perplexity.TEXT`, `kld.TEXT`. Left out together "
        "with `maximise`: all perplexities.",
    )
    maximise: TextList = Field([], description="Figures that should be high: `tasks.NAME`.")
    by: Choice(By) = Field(
        "ranks",
        description="`ranks`: the lowest mean of its ranks. `sum`: the lowest weighted sum "
        "(perplexities as their logarithm). `pareto`: the lowest mean of ranks among those that no "
        "other beats in everything.",
    )
    weights: Read(dict[str, float], to_weights, dict[str, float]) = Field(
        {}, description="`sum`: the weight of each figure, above 0; 1 if not given."
    )


class Study(Section):
    """A grid of merges, of which one is chosen by what was measured."""

    sections = frozenset({"measure", "choose"})

    merge: Read(dict[str, Any], values.to_merge, dict[str, Any]) = Field(
        description="A mergekit configuration with `$name` in the place of what is varied."
    )
    vary: Read(dict[str, list[Any]], to_vary, dict[str, list[Any]]) = Field(
        {}, description="The values of each `$name`; all combinations are made."
    )
    pairs: Read(list[dict[str, Any]], to_rows, list[dict[str, Any]]) = Field(
        [],
        description="Combinations that belong together, `{name: value, …}` each, where not all are "
        "to be made.",
    )
    random_seed: Read(int | str, to_seed, int | str) = Field(
        0, description="Seed of the merges, for the methods that draw; or `$name`."
    )
    allow_pickle: Flag = Field(
        False, description="Take .bin and .pt weights, which can run code when loaded."
    )
    measure: Measure = Field(description="What is measured.")
    rounds: list[Round] = Field([], description="Several rounds, the last one without `keep`.")
    choose: Choose = Field(default_factory=Choose, description="How one is chosen.")
    keep: Flag = Field(
        False, description="Keep the candidates' merges and conversions once they are measured."
    )
    at_once: Number(int, 1) = Field(
        2, description="Candidates on the disk at one time, where they are not kept."
    )

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The values of each candidate."""
        return grid.combinations(self.vary, self.pairs)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """All candidates, in the order of the config. Raises ValueError (`grid.candidates`)."""
        return grid.candidates(self.merge, self.rows, self.random_seed)

    @property
    def seed_name(self) -> str | None:
        """The name whose values are seeds; None if the seed is not varied."""
        return next(grid.names_in(self.random_seed), None)

    @property
    def parents(self) -> list[str]:
        """The models that are merged, each once; of `model+adapter` the model."""
        every = (r for c in self.candidates for r in grid.merge_references(c.merge))
        found = [reference.parts[0] for reference in every if reference.parts]
        return list(dict.fromkeys(found))

    @property
    def merges(self) -> list[dict[str, Any]]:
        """The mergekit configurations of all candidates."""
        return [each.merge for each in self.candidates]

    # As a model has them (lib/config/schema.Model):

    def families(self) -> list[Any]:
        """None: nothing is made of candidates but what is measured."""
        return []

    @property
    def publish(self) -> None:
        """None: a model that takes its winner is published."""
        return None

    def parts(self) -> list[str]:
        """The references that its merges are made from, each once."""
        return list(dict.fromkeys(part for each in self.candidates for part in each.parts()))

    def references(self) -> list[str]:
        """None beside `parts`."""
        return []

    def needs(self) -> list[str]:
        """All that it is made from: `parts`."""
        return self.parts()

    def corpora(self) -> set[str]:
        """The names of the texts on which it measures."""
        return {*self.measure.perplexity, *self.measure.kld}

    @property
    def minimised(self) -> list[str]:
        """The figures that should be low."""
        if self.choose.minimise or self.choose.maximise:
            return self.choose.minimise
        return [f"perplexity.{text}" for text in self.measure.perplexity]

    @property
    def each_round(self) -> list[Round]:
        """The rounds; one, if none are named."""
        return self.rounds or [Round()]

    def taking_part(self, number: int, chosen: Chosen) -> list[Candidate]:
        """The candidates that are measured in a round, from 0: those that stayed in all before."""
        found = self.candidates
        for earlier in range(number):
            if earlier >= len(chosen.rounds):
                return []
            found = [each for each in found if each.id in chosen.rounds[earlier]["kept"]]
        return found


class PerplexityStage(EvaluateStage):
    """Measure the perplexity of a GGUF on a text."""

    rule = "perplexity"
    column = "measured"


class StudyStage(Stage):
    """Write what was measured in a study: a table, a plot and a page."""

    rule = "study"
    column = "report"
    typical = 300_000


STAGES = (PerplexityStage(), StudyStage())


class Declared:
    """The artifacts of a study, each after its inputs, in `artifacts`.

    shared: lib/stages/shared. chosen: the study's entry in the lock.
    """

    def __init__(self, shared: Any, name: str, study: Study, chosen: Chosen):
        self.shared, self.name, self.study, self.chosen = shared, name, study, chosen
        self.top = f"studies/{name}"
        self.merges: dict[str, Artifact] = {}
        self.measured: dict[str, Artifact] = {}  # by its role in the table's recipe
        self.artifacts: list[Artifact] = []
        self._each: list[list[Artifact]] = []  # what was measured of each model, in order
        # Of each candidate a text of what decides its merge: equal for twins.
        self._twins = {
            c.id: json.dumps([c.merge, seed_of(c.merge, c.random_seed)]) for c in study.candidates
        }
        self._last: dict[str, tuple[int, Artifact]] = {}  # of twins: its place, and its merge
        self.parents = {grid.word(ref): ref for ref in study.parents}
        self.base_logits: dict[tuple[str, str], Artifact] = {}
        last = len(study.each_round) - 1
        for parent, reference in self.parents.items():
            weights = shared.weights(reference, study.allow_pickle)
            self._measure("parents", parent, weights, {last}, self._waits())
        taking = [{c.id for c in study.taking_part(n, chosen)} for n in range(last + 1)]
        # Those of the latest round first: only they have work left when that round comes. Twins
        # follow each other, so that their merge is still there.
        first: dict[str, int] = {}
        for place, twin in enumerate(self._twins.values()):
            first.setdefault(twin, place)
        late = sorted(
            study.candidates,
            key=lambda c: (-sum(c.id in ids for ids in taking), first[self._twins[c.id]]),
        )
        for candidate in late:
            rounds = {number for number, ids in enumerate(taking) if candidate.id in ids}
            merged = self._merge(candidate)
            self._measure("candidates", candidate.id, merged, rounds, {})
        self.table = self._table()
        self.artifacts.append(self.table)

    def _waits(self) -> dict[str, Artifact]:
        """What has to be measured before one more model may lie on the disk, for `uses`."""
        if self.study.keep or len(self._each) < self.study.at_once:
            return {}
        before = self._each[-self.study.at_once]
        return {f"after {number}": artifact for number, artifact in enumerate(before)}

    def _twin(self, candidate: Candidate) -> dict[str, Artifact]:
        """The merge of an earlier candidate that is the same, for `uses`.

        Only one that may lie on the disk anyway when this one is made: to wait for a later twin
        would keep more of them there than `at_once`.
        """
        place, twin = self._last.get(self._twins[candidate.id], (0, None))
        near = self.study.keep or len(self.merges) - place < self.study.at_once
        return {"same": twin} if twin and near else {}

    def _merge(self, candidate: Candidate) -> Artifact:
        made = merge(
            self.shared,
            f"{self.top}/candidates/{candidate.id}",
            candidate.merge,
            candidate.random_seed,
            self.study.allow_pickle,
            model=self.name,
            uses=self._waits() | self._twin(candidate),
            temporary=not self.study.keep,
        )
        self._last[self._twins[candidate.id]] = len(self.merges), made
        self.merges[candidate.id] = made
        self.artifacts.append(made)
        return made

    def _measure(
        self, kind: str, name: str, weights: Artifact, rounds: set[int], waits: dict[str, Artifact]
    ) -> None:
        """Declare a model's conversion and all that is measured of it.

        kind: parents or candidates. A candidate may be called as a parent is. rounds: from 0.
        """
        shared, measure, place = self.shared, self.study.measure, f"{self.top}/{kind}/{name}"
        is_parent = kind == "parents"
        whose = f"{kind}/{name}" if is_parent else name
        llama_cpp = shared.by_llama_cpp()
        gguf = convert(
            shared,
            place,
            CONVERSION,
            weights,
            uses=waits,
            model=self.name,
            temporary=not self.study.keep,
        )
        self.artifacts.append(gguf)
        made = []

        def add(role: str, path: str, rule: str, options: dict, **details: Any) -> Artifact:
            details = llama_cpp | {"model": self.name} | details
            artifact = shared.once(f"results/{place}/{path}", rule, options, **details)
            self.artifacts.append(artifact)
            if role:
                counts(role, artifact)
            return artifact

        def counts(role: str, artifact: Artifact) -> None:
            self.measured[f"{role} {whose}"] = artifact
            made.append(artifact)

        for number in sorted(rounds):
            chunks = self.study.each_round[number].chunks or measure.chunks
            for text in measure.perplexity:
                add(
                    f"round {number + 1} perplexity.{text}",
                    f"perplexity/{number + 1}/{text}.json",
                    "perplexity",
                    {"corpus": text, "context": measure.context, "chunks": chunks},
                    inputs={"gguf": gguf, "corpus": shared.corpus(text)},
                    intermediate=False,
                )
        last = len(self.study.each_round) - 1
        if last in rounds:
            options = {"context": measure.context}
            options["chunks"] = self.study.each_round[last].chunks or measure.chunks
            for text in measure.kld:
                if is_parent:
                    self._base_logits(add, text, name, gguf, options)
                else:
                    self._kld(add, text, gguf, options)
            for task, asked in measure.tasks.items():
                score = shared.own_file(
                    f"results/{place}/evaluation/tasks/{task}/{CONVERSION}.json",
                    "evaluate_task",
                    self.name,
                    asked.file,
                    options=asked.model_dump(include={"kind", "count", "context"}),
                    inputs={"gguf": gguf},
                    **llama_cpp,
                )
                self.artifacts.append(score)
                counts(f"round {last + 1} tasks.{task}", score)
        self._each.append(made)

    def _base_logits(self, add: Any, text: str, parent: str, gguf: Artifact, options: dict) -> None:
        inputs = {"gguf": gguf, "corpus": self.shared.corpus(text)}
        path = f"evaluation/{text}/base.kld"
        made = add("", path, "base_logits", options, inputs=inputs, temporary=True)
        self.base_logits[text, parent] = made

    def _kld(self, add: Any, text: str, gguf: Artifact, options: dict) -> None:
        corpus = self.shared.corpus(text)
        for parent in self.parents:
            inputs = {"gguf": gguf, "base": self.base_logits[text, parent], "corpus": corpus}
            add(
                f"round {len(self.study.each_round)} kld.{text} {parent}",
                f"evaluation/{text}/{parent}.json",
                "evaluate",
                {"corpus": text} | options,
                inputs=inputs,
                intermediate=False,
            )

    def _table(self) -> Artifact:
        study, here = self.study, f"results/{self.top}/study"
        options = {
            "study": self.name,
            # Lists: the keys of a mapping are sorted in a recipe, and the config's order is that of
            # the table, and decides between equals.
            "candidates": [[c.id, [[n, v] for n, v in c.values.items()]] for c in study.candidates],
            "parents": [[name, reference] for name, reference in self.parents.items()],
            "seed": study.seed_name,
            "rounds": [
                {"chunks": each.chunks or study.measure.chunks, "keep": each.keep}
                for each in study.each_round
            ],
            "kept": [entry["kept"] for entry in self.chosen.rounds],
            "choose": study.choose.model_dump() | {"minimise": study.minimised},
        }
        return Artifact(
            f"{here}.csv",
            "study",
            self.name,
            options,
            inputs=self.measured,
            outputs=tuple(f"{here}.{kind}" for kind in REPORT),
            describes=True,
        )


def known_figures(study: Study) -> Iterator[str]:
    """Yield what `choose` may name."""
    yield from (f"perplexity.{text}" for text in study.measure.perplexity)
    yield from (f"kld.{text}" for text in study.measure.kld)
    yield from (f"tasks.{name}" for name in study.measure.tasks)


def preflight(inspector: Inspector, name: str, study: Study) -> Iterator[Row]:
    """Check that candidates and the models that are merged cut texts into the same tokens.

    Of a tokenizer its vocabulary is known. A measured perplexity tells how its text was cut.
    """
    measure = study.measure
    own = dict.fromkeys(part for each in study.candidates for part in tokenizer_of(each.merge))
    same = len({tokenizer_of(each.merge) for each in study.candidates}) == 1
    differ = None if same else _clash(inspector, own)
    if differ and measure.perplexity:
        by_it = any(figure.startswith("perplexity.") for figure in study.minimised)
        said = f"perplexities of its candidates are not comparable: {differ}"
        end = "; choose by tasks, in one round" if by_it else ""
        yield Row(name, "problem" if by_it else "note", said + end)
    for parent in study.parents:
        if not (text := _clash(inspector, {parent: None, **own})):
            continue
        if measure.kld:
            yield Row(name, "problem", f"no KL divergence from {parent} can be measured: {text}")
        elif measure.perplexity and not differ:
            yield Row(name, "note", f"{parent} is left out where perplexities are compared: {text}")


def tokenizer_of(merge: dict[str, Any]) -> tuple[str, ...]:
    """The models whose tokenizer a merge takes: one, or of a union all."""
    asked = merge.get("tokenizer_source") or as_mapping(merge.get("tokenizer")).get("source")
    every = [found for found in merge_references(merge) if found.parts]
    if asked == "union":
        return tuple(dict.fromkeys(found.parts[0] for found in every))
    if asked and asked != "base":
        places = ("tokenizer_source",), ("tokenizer", "source")
        every = [found for found in every if found.where in places]
    return tuple(found.parts[0] for found in every[:1])


def _clash(inspector: Inspector, references: Iterable[str]) -> str | None:
    """How the first model's vocabulary differs from another's, in words; None if none does."""
    first, *others = references
    return next((text for each in others if (text := inspector.clash(first, each))), None)

"""How the fine-tunes of a merge lie to each other: their task vectors, compared before the merge.

The sources alone decide it, so no parameter of the merge makes it stale.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import Field

from lib.formats.merge_references import merge_references
from lib.formats.task_vectors import place_of
from lib.keys.section import Section, Text
from lib.keys.values import show
from lib.record.artifact import Artifact
from lib.record.tools import package_version
from lib.stages.checked import SHAPE, Inspector, Row
from lib.stages.stage import Cost, Counted, Memory, Size, Sizing, Stage, Time

BYTES_OF_A_ROW = 130  # of the table, with names of usual lengths (measured)


class Similarity(Section):
    """Compare the merge's fine-tunes by what they changed of their base."""

    base: Text | None = Field(
        None,
        description="The model that all were made from; left out, it is the merge's `base_model`.",
    )


class SimilarityStage(Stage):
    """Compare the task vectors of a merge's fine-tunes, tensor by tensor."""

    rule = "similarity"
    column = "similarity"
    is_long = True
    # A process holds 8 MiB of each model and a block to compute with. Three models and two
    # processes took 96 MiB whatever their layers (measured); nine models and 8 are 0.8 GB.
    memory = Memory(1500)
    time = Time(10, 150)
    cost = Cost(1, 1.3)  # measured
    counted = Counted(r"compared (\d+) of \d+ weights", r"compared \d+ of (\d+) weights")
    typical = 200_000

    def threads(self, size: int, cores: int, jobs: int) -> int:
        """Up to 8, which are faster than most disks."""
        return max(1, min(8, cores))

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """A line for each tensor, kind and layer, and each pair of models."""
        weights = sizes.weights(artifact.inputs["base"])
        if weights is None:
            return None
        places = [place_of(name) for name in weights.tensors]
        scopes = len(places) + len({place.kind for place in places})
        scopes += len({place.layer for place in places})
        count = len(artifact.options["models"])
        return Size(BYTES_OF_A_ROW * scopes * count * (count - 1) // 2, "tensors")


class SimilarityPageStage(Stage):
    """Draw the heat maps of a comparison, and write its page."""

    rule = "similarity_page"
    column = SimilarityStage.column
    memory = Memory(1000)
    cost = Cost(1, 0)
    typical = 150_000


STAGES = (SimilarityStage(), SimilarityPageStage())


class Chosen(NamedTuple):
    """What is compared: references as the config writes them. base: None if none is named.

    adapters: the references of a model with an adapter, which cannot be compared.
    """

    base: str | None
    tunes: list[str]
    adapters: list[str]


def chosen(models: Mapping[str, Any], model: Any) -> Chosen:
    """The base and the fine-tunes of a merge, in the order of their names, each model once.

    models: the config's. model: a merge (lib/config/schema.Model) with `similarity`.
    """
    references = [ref for ref in merge_references(model.merge) if ref.parts]
    bases = [ref.parts for ref in references if ref.where[-1] == "base_model"]
    merged = [
        ref.parts
        for ref in references
        if ref.where[-1] == "model" and ref.where[0] in ("models", "slices", "modules")
    ]
    adapters = list(dict.fromkeys("+".join(p) for p in (*bases, *merged) if len(p) > 1))
    own = model.similarity.base
    if own is None:
        named = {_same(models, parts[0]): parts[0] for parts in bases}
        base = next(iter(named.values())) if len(named) == 1 else None
    else:
        base, merged = own, [*bases, *merged]
    # Sorted: the order of a merge's models is one of its parameters.
    tunes = {_same(models, parts[0]): parts[0] for parts in sorted(merged, reverse=True)}
    if base is not None:
        tunes.pop(_same(models, base), None)
    return Chosen(base, sorted(tunes.values()), adapters)


def _same(models: Mapping[str, Any], reference: str) -> str:
    """A text that is the same for all references to one model."""
    model = models.get(reference)
    if model is not None and model.merge is None and model.source:
        reference = model.source
    return os.path.normpath(reference) if reference.startswith((".", "/")) else reference


def check(checks: Any, at: tuple, name: str, model: Any) -> None:
    """Report mistakes in `similarity`, at its key path (lib/config/checks.Checks)."""
    if model.merge is None:
        checks.add(at, "only of a merge: it compares the models that are merged")
        return
    if model.allow_pickle:
        checks.add(at, "it reads safetensors alone, and allow_pickle takes pickles")
    base, tunes, adapters = chosen(checks.config.models, model)
    if model.similarity.base is not None:
        if base == name:
            checks.add((*at, "base"), f"{base} is the merge itself")
        else:
            checks.reference((*at, "base"), base, "config.json")
    for adapter in adapters:
        text = f"{adapter} is a model with an adapter, which cannot be compared; give it a name in "
        text += "models, as a merge of its own (merge_method: passthrough), and merge that"
        checks.add(at, text)
    if base is None:
        text = "the merge has no base_model, and what its models changed is counted from one: "
        checks.add(at, f"{text}similarity: {{base: the model that all were made from}}")
    elif len(tunes) < 2:
        there = f"only {show(tunes[0])}" if tunes else "none"
        text = f"compares two models or more, and beside the base {show(base)} the merge has "
        text += f"{there}; if that is not what all were made from, name it: similarity: {{base: …}}"
        checks.add(at, text)


def preflight(inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
    """Check that the fine-tunes have the shape of the base, and say whether tokens differ."""
    base, tunes, _ = chosen(inspector.models, model)
    subject = f"models.{name}.similarity"
    first, problems = inspector.config(base), False
    for tune in tunes:
        config = inspector.config(tune)
        if first is None or config is None:
            continue
        for key in SHAPE:
            if key in first and key in config and first[key] != config[key]:
                problems = True
                text = f"{key} is {config[key]} in {tune}, {first[key]} in {base}"
                yield Row(subject, "problem", f"{text}: it was not made from that")
        if clash := inspector.clash(base, tune):
            yield Row(subject, "note", f"{clash}; embeddings are compared token by token")
    if not problems:
        yield Row(subject, "ok", f"{', '.join(tunes)} by what they changed of {base}")


def declare(shared: Any, name: str, model: Any) -> list[Artifact]:
    """Declare the table of a model with `similarity`, and the page that shows it."""
    base, tunes, _ = chosen(shared.config.models, model)
    here = f"results/{name}/similarity/similarity"
    table = Artifact(
        f"{here}.csv",
        "similarity",
        name,
        {"base": base, "models": tunes},
        inputs={"base": shared.weights(base)}
        | {f"model {tune}": shared.weights(tune) for tune in tunes},
        tools={"numpy": package_version("numpy")},
    )
    page = Artifact(
        f"{here}.svg",
        "similarity_page",
        name,
        {"model": name},
        inputs={"table": table},
        outputs=(f"{here}.svg", f"{here}.html"),
        describes=True,
    )
    return [table, page]

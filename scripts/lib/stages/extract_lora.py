"""LoRA adapters that are extracted from a model: its difference from a base model, in few weights.

By mergekit-extract-lora. They are no forms of the model, so no report or card lists them.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from lib.formats.merge_references import reference_kind
from lib.keys import values
from lib.keys.section import Flag, Number, Read, Section, Text, TextList
from lib.keys.values import show, suggestion
from lib.record.artifact import Artifact
from lib.record.tools import package_version
from lib.stages.checked import Inspector, Row
from lib.stages.family import Family, Forms
from lib.stages.merge import TOOLS
from lib.stages.stage import Cost, Memory, Size, Sizing, Stage, Time

# Modules that have tokens in one axis, and examples of those that mergekit cannot decompose.
EMBEDDINGS = ("model.embed_tokens", "lm_head")
NORMS = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")


class Adapter(Section):
    """One adapter; the keys are mergekit-extract-lora's options."""

    rank: Number(int, 1) = Field(128, description="The most that an adapter's matrix may have.")
    distribute_scale: Flag = Field(
        True, description="Spread the singular values over both matrices of a pair."
    )
    embed_lora: Flag = Field(
        False, description="Extract the embeddings as LoRA too, and do not save them whole."
    )
    save_module: TextList = Field([], description="Modules to save whole, such as `lm_head`.")
    exclude_regex: TextList = Field([], description="Leave out modules that one of these matches.")
    include_regex: TextList = Field(
        [], description="Leave out modules that none of these matches; embeddings apart."
    )
    sv_epsilon: Number(float, 0) = Field(
        0.0, description="Leave out singular values that are not above this."
    )
    skip_undecomposable: Flag = Field(
        False, description="Leave out what is no matrix (norms), and do not save it whole."
    )

    def takes(self, module: str) -> bool:
        """Whether the patterns let a module be extracted."""
        included = not self.include_regex or any(re.search(p, module) for p in self.include_regex)
        return included and not self._excludes(module)

    def _excludes(self, module: str) -> bool:
        return any(re.search(pattern, module) for pattern in self.exclude_regex)

    def saves(self, module: str, is_matrix: bool) -> bool:
        """Whether a module is saved whole. is_matrix: it is no norm."""
        named = {module, module.split(".")[-1]} & set(self.save_module)
        embedding = module in EMBEDDINGS and not self.embed_lora and not self._excludes(module)
        norm = not is_matrix and not self.skip_undecomposable and self.takes(module)
        return bool(named) or embedding or norm


class ExtractLora(Section):
    """LoRA adapters of the model's difference from a base model, as peft loads them."""

    base: Text | None = Field(
        None,
        description="The base model: a model of the config, a directory or a hub id; the merge's "
        "`base_model` if left out.",
    )
    adapters: Read(dict[str, Adapter], values.to_mapping) = Field(
        description="The adapters, by name: results/MODEL/lora/NAME/."
    )


class ExtractLoraStage(Stage):
    """Extract a LoRA adapter with mergekit; check that peft loads it, and how near it comes."""

    rule = "extract_lora"
    column = "companions"
    is_long = True
    # The decomposition of one matrix of 4096 x 4096 takes 49 s on two busy cores (measured), that
    # of an 8B model's 224 matrices some hours.
    cost = Cost(9, 900)
    # Both models are read tensor by tensor; the decomposition has some copies in float32.
    memory = Memory(2500, 1.5, 8000, 0.1)
    time = Time(20, 3)
    output = 0.6

    def threads(self, size: int, cores: int, jobs: int) -> int:
        """4, which scripts/extract_lora.py gives torch whatever the machine."""
        return min(4, max(1, cores))

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """The pairs of matrices of the rank, and what is saved whole."""
        weights = sizes.weights(artifact.inputs["model"])
        if weights is None or not weights.tensors:
            return None
        adapter = Adapter.model_validate(
            {key: value for key, value in artifact.options.items() if key != "base"}
        )
        total = 0
        for name, dims in weights.tensors.items():
            module, is_matrix = name.removesuffix(".weight"), len(dims) > 1
            if adapter.saves(module, is_matrix):
                total += dims[0] * (dims[1] if is_matrix else 1)
            elif is_matrix and adapter.takes(module):
                total += min(adapter.rank, *dims) * sum(dims)
        return Size(round(total * weights.bytes_per_weight), "tensors")


class ExtractLoraFamily(Family):
    """LoRA adapters; they are no forms."""

    name, title, phrase = "extract_lora", "LoRA", ""
    library = "peft"
    colours = ("#59636e", "#9ba6b2")
    section = ExtractLora
    section_says = "Extract LoRA adapters from the model."
    makes_forms = False
    stages = (ExtractLoraStage(),)

    def corpora(self, model: Any) -> set[str]:
        """No texts."""
        return set()

    def references(self, model: Any) -> list[str]:
        """The base model."""
        return [base] if (base := base_of(model)) else []

    def check(self, checks: Any, at: tuple, name: str, model: Any) -> None:
        """Report mistakes: no base model, names and patterns that cannot be."""
        section = model.extract_lora
        if model.moe is not None:
            checks.add(at, "a mixture of experts has no base model that a LoRA could be added to")
            return
        base = base_of(model)
        if base is None:
            why = "the merge has no base_model" if model.merge else "the model is no merge"
            checks.add(at, f"base is missing: {why}")
        elif section.base is not None:
            checks.reference((*at, "base"), base, "config.json")
            if base == name:
                checks.add((*at, "base"), "is the model itself")
        if not section.adapters:
            checks.add((*at, "adapters"), "names no adapter: {NAME: {rank: 32}}")
        checks.names((*at, "adapters"), section.adapters)
        for adapter, options in section.adapters.items():
            for key in ("exclude_regex", "include_regex"):
                for number, pattern in enumerate(getattr(options, key)):
                    try:
                        re.compile(pattern)
                    except re.error as error:
                        here = (*at, "adapters", adapter, key, number)
                        text = f"{show(pattern)} is not a regular expression: {error}"
                        checks.add(here, text)

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """Check that model and base have one shape."""
        base = base_of(model)
        ours, theirs = inspector.config(name), inspector.config(base) if base else None
        subject = f"models.{name}.extract_lora"
        if ours is None or theirs is None:
            return
        for key in ("model_type", "hidden_size", "intermediate_size", "vocab_size"):
            if ours.get(key) != theirs.get(key):
                text = f"{key} is {ours.get(key)}, and {theirs.get(key)} in the base {base}"
                yield Row(subject, "problem", text)
                return
        yield Row(subject, "ok", f"fits its base {base}")

    def make(self, shared: Any, name: str, model: Any, weights: Artifact | None) -> Forms:
        return Forms([declare(shared, name, adapter) for adapter in model.extract_lora.adapters])

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """Nothing is published."""
        return {"main": []}


FAMILY = ExtractLoraFamily()


def base_of(model: Any) -> str | None:
    """The reference of a model's base (lib/config/schema.Model); None if it has none."""
    if model.extract_lora.base is not None:
        return model.extract_lora.base
    written = (model.merge or {}).get("base_model")
    return written if isinstance(written, str) and "+" not in written else None


def path_of(name: str, adapter: str) -> str:
    """Where an adapter of a model lies."""
    return f"results/{name}/lora/{adapter}"


def named_by(directory: str) -> tuple[str, str] | None:
    """(model, adapter) if a directory is one of an adapter that is extracted here; else None."""
    if reference_kind(directory) != "directory":
        return None
    match PurePosixPath(directory).parts:
        case ("results", name, "lora", adapter):
            return name, adapter
    return None


def declare(shared: Any, name: str, adapter: str) -> Artifact:
    """Declare an adapter. name: the model that has it in its section."""
    model = shared.config.models[name]
    base = base_of(model)
    outside = base
    while outside in shared.config.models and shared.config.models[outside].source:
        outside = shared.config.models[outside].source
    return shared.once(
        path_of(name, adapter),
        "extract_lora",
        {**model.extract_lora.adapters[adapter].model_dump(), "base": outside.partition("@")[0]},
        model=name,
        inputs={"model": shared.weights(name), "base": shared.weights(base)},
        tools={tool: package_version(tool) for tool in TOOLS},
        directory=True,
        intermediate=False,
    )


def fault(config: Any, name: str, adapter: str) -> str | None:
    """Why llama.cpp cannot apply an adapter that is extracted here, in words; None if it can.

    config: lib/config/schema.Config.
    """
    model = config.models.get(name)
    known = model.extract_lora.adapters if model is not None and model.extract_lora else {}
    if adapter not in known:
        near = suggestion(adapter, known)
        return f"is none: models.{name}.extract_lora has no adapter {show(adapter)}{near}"
    options = known[adapter]
    whole = [part for part in EMBEDDINGS if options.saves(part, True)]
    whole += [part for part in NORMS if options.saves(part, False)]
    if whole or options.save_module:
        named = (whole or options.save_module)[0]
        return (
            f"cannot be applied by llama.cpp: it holds {named} whole; set embed_lora: true and "
            "skip_undecomposable: true"
        )
    return None

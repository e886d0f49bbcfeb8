"""The family compressed-tensors: directories for vLLM and transformers, by llmcompressor."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from lib.formats.compressed_tensors import SCHEMES, fault, quantized_bytes
from lib.keys.section import Read, Section
from lib.keys.values import show, suggestion, to_list
from lib.record.artifact import Artifact
from lib.stages import convert, evaluation
from lib.stages.checked import Inspector, Row
from lib.stages.environments import by_environment
from lib.stages.family import Family, Forms, entry
from lib.stages.imatrix import CHUNKS
from lib.stages.stage import Memory, Size, Sizing, Stage, Time, locked_size

UNQUANTIZED = "transformers"  # what the evaluation of the unquantized model is called
# Matches the names of all forms, and that.
FORM = "|".join([*SCHEMES, UNQUANTIZED])


def to_schemes(value: Any) -> list[str]:
    """A list of names of SCHEMES, in upper case, each once."""
    found = []
    for word in to_list(value):
        scheme = str(word).upper()
        if scheme not in SCHEMES:
            near = suggestion(word, SCHEMES)
            raise ValueError(f"{show(word)} is not one of {', '.join(SCHEMES)}{near}")
        if scheme in found:
            raise ValueError(f"{scheme} is there twice")
        found.append(scheme)
    if not found:
        raise ValueError("names no scheme, such as [FP8_DYNAMIC, NVFP4A16]")
    return found


class CompressedTensors(Section):
    """The model in compressed-tensors, for vLLM and transformers, by llmcompressor."""

    schemes: Read(list[str], to_schemes, {"type": "array", "items": {"enum": list(SCHEMES)}}) = (
        Field(description="One directory for each: " + ", ".join(f"`{s}`" for s in SCHEMES) + ".")
    )


class CompressedTensorsStage(Stage):
    """Quantize by one scheme, without data."""

    rule = "compressed_tensors"
    column = "compressed-tensors"
    is_long = is_weights = True
    # A file of weights at a time, 2.5 times; then transformers loads the result and takes 16 bits
    # for each weight again.
    memory = Memory(4000, 3.0, 13000, 1.6)
    time = Time(15, 10)  # two busy cores: FP4 17 MB/s, all others 50 (measured), and the loading
    output = 0.7
    fixed_threads = None

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """The bits of the scheme for matrices; all else as it was."""
        model, scheme = artifact.inputs["model"], artifact.options["scheme"]
        weights = sizes.weights(model)
        if weights is None:
            return locked_size(model, sizes, SCHEMES[scheme].bits)
        size = quantized_bytes(scheme, weights.tensors, weights.bytes_per_weight)
        return Size(size + weights.side_files, "tensors")

    def impossible(self, artifact: Artifact, sizes: Sizing) -> str | None:
        """Why llmcompressor cannot give the model this scheme."""
        weights = sizes.weights(artifact.inputs["model"])
        wrong = weights and fault(artifact.options["scheme"], weights.tensors)
        return f"{artifact.path}: {wrong}" if wrong else None


class EvaluateTransformersStage(Stage):
    """Measure a form, or the unquantized model, by transformers against the base logits."""

    rule = "evaluate_transformers"
    column = "evaluated"
    measures = True
    reads = ("unquantized",)
    memory = Memory(4000, 3.2, 0, 3.2)  # 16 bits for each weight, of which it makes 32
    time = Time(15, 100)
    tokens = 300_000  # 600 chunks of 512
    counted = CHUNKS
    gpu = "whole"
    fixed_threads = None
    priority = 1
    typical = 1_000

    def gpu_copies(self, size: int) -> int:
        """2: of 16 bits for each weight it makes 32."""
        return 2


class CompressedTensorsFamily(Family):
    """Directories in compressed-tensors, one for each scheme; on the hub a repository each."""

    name, title = "compressed_tensors", "compressed-tensors"
    phrase = " as compressed-tensors for vLLM"
    library, tags = "transformers", ("compressed-tensors", "vllm", "llm-compressor")
    colours = ("#7a3fa0", "#c79be8")
    section = CompressedTensors
    section_says = "Make directories in compressed-tensors."
    repository_says = (
        "Repositories for compressed-tensors: one for each scheme, with `{form}` (FP8-Dynamic) in "
        "its name; without it one with a branch for each."
    )
    repository_by_form = True
    form_pattern = re.compile(FORM, re.IGNORECASE)
    stages = (CompressedTensorsStage(), EvaluateTransformersStage())
    quantized = {"compressed_tensors": True}
    by_base_logits = True

    def names(self, model: Any) -> list[str]:
        return model.compressed_tensors.schemes

    def repository_form(self, form: str) -> str:
        """As people write it there: FP8-Dynamic for FP8_DYNAMIC."""
        return self.lines.branch(form)

    def make(self, shared: Any, name: str, model: Any, weights: Artifact) -> Forms:
        tools = by_environment(shared, "llmcompressor")
        forms = {
            scheme: Artifact(
                f"results/{name}/compressed-tensors/{scheme}",
                "compressed_tensors",
                name,
                {"scheme": scheme},
                inputs={"model": weights},
                directory=True,
                **tools,
            )
            for scheme in self.names(model)
        }
        found = Forms([*forms.values()], forms)
        if model.evaluate is not None:
            conversion = convert.conversion(shared, name, model, weights)
            found.artifacts.append(conversion)
            base = evaluation.base_logits(shared, found, name, model.evaluate, conversion)
            unquantized = Forms(forms={UNQUANTIZED: weights})

            def floor(place: str, text: Artifact) -> dict[str, Artifact]:
                measured = {up.path: up for up in unquantized.artifacts}
                return {"floor": measured[f"{place}{UNQUANTIZED}.json"]}

            for measured, others in ((unquantized, lambda *_: {}), (found, floor)):
                evaluation.on_each_text(
                    *(shared, measured, name, model.evaluate, "evaluate_transformers", "form"),
                    lambda *at, others=others: base(*at) | {"unquantized": weights} | others(*at),
                    unread=("unquantized",),  # by its size the step's memory is known
                    **tools,
                )
            found.artifacts += unquantized.artifacts
        return found

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """A branch for each scheme."""
        forms = {self.lines.branch(form): [entry(up, "")] for form, up in made.forms.items()}
        return {"main": []} | forms

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """Check that the model is not quantized already; for base logits also as for GGUF."""
        yield from super().preflight(inspector, name, model)
        if "quantization_config" in (inspector.config(name) or {}):
            yield Row(name, "problem", "its config.json says that it is quantized already")
        if model.evaluate is not None and model.gguf is None:
            yield from convert.preflight(inspector, name)


FAMILY = CompressedTensorsFamily()

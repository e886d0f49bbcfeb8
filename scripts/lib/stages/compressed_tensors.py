"""The family compressed-tensors: directories for vLLM and transformers, by llmcompressor."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from lib.formats.compressed_tensors import CALIBRATED, METHODS, SCHEMES, fault, quantized_bytes
from lib.keys.section import Choice, Number, Read, Section, Text
from lib.keys.values import show, suggestion
from lib.record.artifact import Artifact
from lib.record.bound import Bound
from lib.stages import evaluation
from lib.stages.checked import Inspector, Row
from lib.stages.environments import by_environment
from lib.stages.family import Family, Forms, entry
from lib.stages.stage import Memory, Size, Sizing, Stage, Time, locked_size

UNQUANTIZED = "transformers"  # what the evaluation of the unquantized model is called
# Matches the names of all forms, and that.
FORM = rf"({'|'.join(SCHEMES)})(-[\w.]+)?|{UNQUANTIZED}"


def to_scheme(value: Any) -> str:
    """A name of SCHEMES, in upper case. Raises ValueError for any other text."""
    if isinstance(value, str) and value.upper() in SCHEMES:
        return value.upper()
    near = suggestion(value, SCHEMES)
    raise ValueError(f"{show(value)} is not one of {', '.join(SCHEMES)}{near}")


def to_quantization(value: Any) -> Any:
    """The options of a quantization, a mapping. A text, such as W4A16, is its scheme alone."""
    return value if isinstance(value, Mapping) else {"scheme": value}


class Quantization(Section):
    """One directory: a scheme, and for some the text by which it is calibrated.

    In the list a scheme alone, such as `FP8_DYNAMIC`, stands for `{scheme: FP8_DYNAMIC}`.
    """

    name: Text = Field(
        "", description="Its name: the scheme, or one that goes on after it, as `W4A16-GPTQ` does."
    )
    scheme: Read(str, to_scheme, {"enum": list(SCHEMES)}) = Field(
        description="What weights, and activations, are rounded to. NVFP4 is calibrated."
    )
    method: Choice(Literal[tuple(METHODS)]) | None = Field(
        None,
        description="How weights are rounded, if not to the nearest: by a text; `gptq` for W4A16 "
        "and W8A16, `awq` for W4A16.",
    )
    corpus: Text = Field("calibration", description="Name of that text in `corpora`.")
    rows: Number(int, 1) = Field(128, description="Rows of the text to use, at most.")
    length: Number(int, 8) = Field(2048, description="Tokens in a row.")

    @property
    def form(self) -> str:
        """Its name, also where it was left out."""
        method = f"-{self.method.upper()}" if self.method else ""
        return self.name or self.scheme + method

    @property
    def calibrated(self) -> bool:
        """Whether it needs a text."""
        return self.method is not None or self.scheme in CALIBRATED


class CompressedTensors(Section):
    """The model in compressed-tensors, for vLLM and transformers, by llmcompressor."""

    schemes: list[Read(Quantization, to_quantization, str | Quantization)] = Field(
        description="The schemes, or mappings with the keys below: a directory for each."
    )


class CompressedTensorsStage(Stage):
    """Quantize by one scheme, without data."""

    rule = "compressed_tensors"
    bound = Bound.ANYWHERE
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
        asked = artifact.options
        wrong = weights and fault(asked["scheme"], weights.tensors, "rows" in asked)
        return f"{artifact.path}: {wrong}" if wrong else None


class CompressedTensorsCalibrateStage(CompressedTensorsStage):
    """Quantize by one scheme, with a text."""

    rule = "compressed_tensors_calibrate"
    bound = Bound.MACHINE
    # The whole model, the states of all rows between two layers, and what it is written as.
    memory = Memory(12000, 3.0, 13000, 1.6)
    time = Time(30, 1)
    gpu = "layer"

    def threads(self, size: int, cores: int, jobs: int) -> int:
        """4, which the program gives torch whatever the machine; on fewer cores all of them."""
        return min(4, cores)


class EvaluateTransformersStage(Stage):
    """Measure a form, or the unquantized model, by transformers against the base logits."""

    rule = "evaluate_transformers"
    column = "evaluated"
    measures = True
    reads = ("unquantized",)
    memory = Memory(4000, 3.2, 0, 3.2)  # 16 bits for each weight, of which it makes 32
    time = Time(15, 100)
    tokens = 300_000  # 600 chunks of 512
    counted = evaluation.BY_ENGINE
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
    stages = (
        CompressedTensorsStage(),
        CompressedTensorsCalibrateStage(),
        EvaluateTransformersStage(),
    )
    quantized = {"compressed_tensors": True, "compressed_tensors_calibrate": True}
    by_base_logits = True

    def corpora(self, model: Any) -> set[str]:
        """The names of the texts by which schemes are calibrated."""
        return {asked.corpus for asked in model.compressed_tensors.schemes if asked.calibrated}

    def names(self, model: Any) -> list[str]:
        return [asked.form for asked in model.compressed_tensors.schemes]

    def check(self, checks: Any, at: tuple, name: str, model: Any) -> None:
        if not model.compressed_tensors.schemes:
            checks.add((*at, "schemes"), "names no scheme, such as [FP8_DYNAMIC, NVFP4A16]")
        taken = set()
        for index, asked in enumerate(model.compressed_tensors.schemes):
            here, form = (*at, "schemes", index), asked.form
            if not re.fullmatch(rf"{asked.scheme}(-[\w.]+)?", form):
                wanted = f"must be {asked.scheme}, or go on after it as {asked.scheme}-2 does"
                checks.add((*here, "name"), f"{show(form)} {wanted}")
            if form.lower() in taken:
                checks.add(here, f"{form} is there twice")
            taken.add(form.lower())
            if asked.method and asked.scheme not in METHODS[asked.method]:
                wanted = " and ".join(METHODS[asked.method])
                checks.add((*here, "method"), f"{asked.method} is for {wanted}")
            elif asked.calibrated:
                checks.uses_corpus((*here, "corpus"), asked.corpus)
            for key in sorted({"corpus", "rows", "length"} & asked.model_fields_set):
                if not asked.calibrated:
                    checks.add((*here, key), f"has no effect: {form} needs no text")

    def repository_form(self, model: Any, form: str) -> str:
        """As people write it there: FP8-Dynamic for FP8_DYNAMIC."""
        return self.lines.branch(form)

    def make(self, shared: Any, name: str, model: Any, weights: Artifact) -> Forms:
        tools = by_environment(shared, "llmcompressor")
        found = Forms()
        for asked in model.compressed_tensors.schemes:
            with_text = {"scheme", "method", "rows", "length"} if asked.calibrated else {"scheme"}
            text = {"corpus": shared.corpus(asked.corpus)} if asked.calibrated else {}
            found.forms[asked.form] = Artifact(
                f"results/{name}/compressed-tensors/{asked.form}",
                "compressed_tensors_calibrate" if asked.calibrated else "compressed_tensors",
                name,
                asked.model_dump(include=with_text, exclude_none=True),
                inputs={"model": weights, **text},
                directory=True,
                **tools,
            )
        found.artifacts += found.forms.values()
        evaluation.by_engine(
            *(shared, found, name, model, weights, "evaluate_transformers", "form", UNQUANTIZED),
            beside={"unquantized": weights},
            unread=("unquantized",),  # by its size the step's memory is known
            **tools,
        )
        return found

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """A branch for each scheme."""
        forms = {self.lines.branch(form): [entry(up, "")] for form, up in made.forms.items()}
        return {"main": []} | forms

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """Check that the model is not quantized already."""
        yield from super().preflight(inspector, name, model)
        if "quantization_config" in (inspector.config(name) or {}):
            yield Row(name, "problem", "its config.json says that it is quantized already")


FAMILY = CompressedTensorsFamily()

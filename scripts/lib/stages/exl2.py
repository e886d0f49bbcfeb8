"""The family EXL2: by exllamav2's converter, on CUDA GPUs."""

import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from lib.errors import UserError
from lib.formats.exllamav2 import check_measurement
from lib.keys.bits import to_bits, to_head_bits
from lib.keys.section import Number, Read, Section, Text
from lib.record.artifact import Artifact
from lib.record.bound import Bound
from lib.stages.checked import Inspector, Row
from lib.stages.environments import by_extension
from lib.stages.evaluation import on_each_text
from lib.stages.family import Family, Forms, Speedometer, entry, file_entry
from lib.stages.stage import Memory, Size, Sizing, Stage, TakenStage, Time, locked_size

HEAD_BITS = (2, 3, 4, 5, 6, 8)
OWN_SET = "default"  # exllamav2's own calibration set


class Exl2(Section):
    """The model as EXL2, by exllamav2's converter; needs a CUDA GPU."""

    bits: Read(list[float], partial(to_bits, low=2), float | list[float]) = Field(
        description="Bits per weight, 2 to 8: one directory for each."
    )
    head_bits: Read(int, partial(to_head_bits, known=HEAD_BITS), {"enum": list(HEAD_BITS)}) = Field(
        6, description="Bits per weight of the output layer."
    )
    measurement: Text | None = Field(
        None,
        description="A measurement.json that you have, in place of a computed one; no "
        "`measurement_rows` or `measurement_length` beside it.",
    )
    corpus: Text = Field(
        OWN_SET, description="exllamav2's own calibration set, or a .parquet text of `corpora`."
    )
    rows: Number(int, 1) = Field(
        100, description="Rows of a corpus for quantizing; exllamav2's own set has its own number."
    )
    length: Number(int, 1) = Field(2048, description="Tokens in a row.")
    measurement_rows: Number(int, 1) = Field(
        16, description="Rows of a corpus for the measurement; the own set has its own number."
    )
    measurement_length: Number(int, 1) = Field(
        2048, description="Tokens in a row of the measurement."
    )
    shard_size: Number(int, 1) = Field(8192, description="Largest file, in MB.")
    rope_scale: Number(float, 0.01) | None = Field(
        None, description="RoPE scaling factor; the model's own if left out."
    )
    rope_alpha: Number(float, 0.01) | None = Field(
        None, description="RoPE alpha (NTK); the model's own if left out."
    )


class Exl2MeasureStage(Stage):
    """Measure the error of each layer at each precision, once a model."""

    rule = "exl2_measure"
    bound = Bound.NEVER
    column = "exl2"
    is_long = True
    # exllamav2's own figures: 16 GB for 7B, 64 GB for 70B: a layer, and the hidden states of every
    # calibration row.
    memory = Memory(11000, 0.4, 0, 0.4)
    # Layer by layer; a measurement tries twelve settings a layer and costs as much as a
    # quantization or more. Owners of one 24 GB card report 2 to 4 hours for 70B.
    time = Time(20, 6)
    output = 0.1
    gpu = "layer"
    on_gpu = True
    priority = 1
    typical = 1_000_000


class Exl2MeasurementFileStage(TakenStage):
    """Copy a measurement that the user has already."""

    rule = "exl2_measurement_file"
    column = "exl2"


class Exl2QuantizeStage(Exl2MeasureStage):
    """Quantize to one bits value."""

    rule = "exl2_quantize"
    is_weights = True
    time = Time(20, 8)
    # Every quantized layer in the work directory, then again as the output.
    output = scratch = 1.1
    priority = 0
    typical = 0

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """16 bits for the embedding, `head_bits` for the output layer, `bits` for all else."""
        model, bits = artifact.inputs["model"], artifact.options["bits"]
        weights = sizes.weights(model)
        if weights is None:
            return locked_size(model, sizes, bits)
        tensors = sizes.tensors(model)
        embedding = math.prod(tensors.get("token_embd.weight", (0,)))
        # Where the head is tied to the embedding, exllamav2 writes a quantized copy of it.
        tied = "output.weight" not in tensors
        head = embedding if tied else math.prod(tensors["output.weight"])
        body = weights.parameters - embedding - (0 if tied else head)
        total = 16 * embedding + artifact.options["head_bits"] * head + bits * body
        return Size(round(total / 8) + weights.side_files, "tensors")


class Exl2EvaluateStage(Stage):
    """Measure one bits value against the unquantized model; exllamav2 runs both."""

    rule = "exl2_evaluate"
    column = "evaluated"
    measures = True
    # Loads tensor by tensor into the GPU; the safetensors are mapped.
    memory = Memory(8000, 0.4, 0, 0.4)
    time = Time(15, 50)
    tokens = 300_000  # 600 chunks of 512
    bytes_per_weight = 0.5
    gpu = "whole"
    on_gpu = True
    typical = 1_000


class Exl2Family(Family):
    """EXL2 directories, one for each bits value; on the hub a branch or a repository each."""

    name, title, phrase = "exl2", "EXL2", " as EXL2 for ExLlamaV2"
    library, tags = "exllamav2", ("exl2", "exllamav2")
    note = "EXL2 runs on CUDA GPUs only."
    tag, colours, diamond = "EXL2", ("#b3500a", "#f2a15f"), True
    section = Exl2
    section_says = "Make EXL2 directories."
    repository_says = (
        "Repository for EXL2: one branch for each bits value, or, with `{form}` (5.0bpw) in its "
        "name, one repository for each."
    )
    repository_by_form = True
    form_pattern = re.compile(r"\d+(\.\d+)?bpw", re.IGNORECASE)
    stages = (
        Exl2MeasureStage(),
        Exl2MeasurementFileStage(),
        Exl2QuantizeStage(),
        Exl2EvaluateStage(),
    )
    quantized = {"exl2_quantize": True}
    own_corpora = {OWN_SET: "exllamav2's own calibration set"}
    needs_gpu = True

    def names(self, model: Any) -> list[str]:
        """A form for each bits value: `5.0bpw` for `bits: 5`."""
        return [f"{float(bits)}bpw" for bits in model.exl2.bits]

    def check(self, checks: Any, at: tuple, name: str, model: Any) -> None:
        section = model.exl2
        if section.measurement is not None:
            checks.file((*at, "measurement"), section.measurement)
            for key in ("measurement_rows", "measurement_length"):
                if key in section.model_fields_set:
                    text = "has no effect together with measurement, which was made already"
                    checks.add((*at, key), text)
        if section.corpus == OWN_SET:
            return
        checks.uses_corpus((*at, "corpus"), section.corpus)
        corpus = checks.config.corpora.get(section.corpus)
        if corpus is not None and corpus.origin().endswith(".txt"):
            text = f"exllamav2 takes a .parquet text, and {section.corpus} is .txt"
            checks.add((*at, "corpus"), text)

    def make(self, shared: Any, name: str, model: Any, weights: Artifact | None) -> Forms:
        section, here = model.exl2, f"results/{name}/exl2"
        tools = by_extension(shared, "exllamav2")
        inputs = {"model": weights}
        if section.corpus != OWN_SET:
            inputs["corpus"] = shared.corpus(section.corpus, ".parquet")
        rope = section.model_dump(include={"rope_scale", "rope_alpha"})
        path = f"{here}/measurement.json"
        if section.measurement:
            measurement = shared.own_file(
                path, "exl2_measurement_file", name, section.measurement, inputs={"model": weights}
            )
        else:
            rows = section.model_dump(include={"measurement_rows", "measurement_length"})
            measurement = Artifact(path, "exl2_measure", name, rows | rope, inputs=inputs, **tools)
        options = section.model_dump(include={"head_bits", "rows", "length", "shard_size"}) | rope
        found = Forms([measurement])
        for bits, form in zip(section.bits, self.names(model), strict=True):
            found.forms[form] = Artifact(
                f"{here}/{form}",
                "exl2_quantize",
                name,
                {"bits": bits, **options},
                inputs={"model": weights, "measurement": measurement, **inputs},
                directory=True,
                **tools,
            )
        found.artifacts += found.forms.values()
        if model.evaluate is not None:
            on = shared, found, name, model.evaluate
            with_weights = {"model": weights}
            on_each_text(*on, "exl2_evaluate", "exl2", lambda *_: with_weights, **tools)
        return found

    def speedometer(self, shared: Any) -> Speedometer:
        found = by_extension(shared, "exllamav2")
        return Speedometer(
            f"exllamav2 {found['tools']['exllamav2']}", ["exl2_speed.py"], found["uses"]
        )

    def card_options(self, model: Any, forms: dict[str, Artifact]) -> dict[str, Any]:
        return {"exl2": model.exl2.model_dump(include={"corpus", "rows", "length"})}

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """The measurement on main; each bits value on a branch of its own."""
        forms = {self.lines.branch(form): [entry(up, "")] for form, up in made.forms.items()}
        return {"main": [file_entry(made.artifacts[0])]} | forms

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """Check that there is a GPU, and that the user's measurement has the model's layers."""
        yield from super().preflight(inspector, name, model)
        if not (file := model.exl2.measurement):
            return
        subject, layers = f"models.{name}.exl2.measurement", inspector.layers(name)
        try:
            check_measurement(Path(file), layers or 0, whole=layers is not None)
        except (UserError, OSError) as error:
            yield Row(subject, "problem", str(error))
            return
        yield Row(subject, "ok", f"{file}: of {layers} layers" if layers else file)


FAMILY = Exl2Family()

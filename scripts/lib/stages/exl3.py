"""The family EXL3: by exllamav3's converter, on CUDA GPUs."""

import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from lib.keys.bits import to_bits, to_head_bits
from lib.keys.section import Number, Read, Section, Text
from lib.record.artifact import Artifact
from lib.record.bound import Bound
from lib.stages import evaluation
from lib.stages.checked import Inspector, Row
from lib.stages.environments import by_extension
from lib.stages.family import Family, Forms, Speedometer, entry
from lib.stages.stage import Memory, Size, Sizing, Stage, Time, locked_size

HEAD_BITS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
OWN_SET = "default"  # exllamav3's own calibration set
UNQUANTIZED = "exllamav3"  # what the evaluation of the unquantized model is called
SUFFIX = "-exl3"  # of its forms' names; another family's may have as many bits
PADDED = 128  # the rows and columns of a matrix are filled up with zeros to a multiple
EMBEDDING = re.compile(r"embed_tokens\.weight|wte\.weight")
HEAD = re.compile(r"lm_head\.weight")


class Exl3(Section):
    """The model as EXL3, by exllamav3's converter; needs a CUDA GPU."""

    bits: Read(list[float], partial(to_bits, low=1), float | list[float]) = Field(
        description="Bits per weight, 1 to 8: one directory for each."
    )
    head_bits: Read(int, partial(to_head_bits, known=HEAD_BITS), {"enum": list(HEAD_BITS)}) = Field(
        6, description="Bits per weight of the output layer; 16 leaves it unquantized."
    )
    corpus: Text = Field(
        OWN_SET, description="exllamav3's own calibration set, or a text of `corpora`."
    )
    rows: Number(int, 1) = Field(250, description="Rows of the text to use, at most.")
    length: Number(int, 8) = Field(2048, description="Tokens in a row.")
    shard_size: Number(int, 1) = Field(8192, description="Largest file, in MB.")


class Exl3QuantizeStage(Stage):
    """Quantize to one bits value."""

    rule = "exl3_quantize"
    bound = Bound.NEVER
    column = "exl3"
    is_long = is_weights = True
    # The states of all rows between two layers, 4 bytes a channel: 8 GB for 250 rows of 2048 tokens
    # of a 7B model; and a layer with what its calibration gathers. Of no run measured yet.
    memory = Memory(11000, 0.4, 0, 0.4)
    time = Time(20, 4)
    # Every quantized layer in the work directory, the states in two checkpoints, then the output.
    output = scratch = 1.6
    gpu = "layer"
    on_gpu = True

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """16 bits for embeddings and scales, `head_bits` for the output layer, `bits` for others.

        Where the head is tied to the embedding, exllamav3 writes a quantized copy of it.
        """
        model, options = artifact.inputs["model"], artifact.options
        weights = sizes.weights(model)
        if weights is None:
            return locked_size(model, sizes, options["bits"])
        embeddings = [name for name in weights.tensors if EMBEDDING.search(name)]
        heads = [name for name in weights.tensors if HEAD.search(name)]
        total = 0
        for name, shape in weights.tensors.items():
            if len(shape) < 2 or name in embeddings:
                total += 16 * math.prod(shape)
            elif name not in heads:
                total += _matrix_bits(shape, options["bits"])
        for name in heads or embeddings[:1]:
            total += _matrix_bits(weights.tensors[name], options["head_bits"])
        return Size(round(total / 8) + weights.side_files, "tensors")


def _matrix_bits(shape: tuple[int, ...], bits: float) -> float:
    """The size in bits of a quantized matrix, or several: packed weights, and a scale a channel."""
    if bits == 16:
        return 16 * math.prod(shape)
    rows, columns = (-(-n // PADDED) * PADDED for n in shape[-2:])
    return math.prod(shape[:-2]) * (bits * rows * columns + 16 * (rows + columns))


class Exl3EvaluateStage(evaluation.BaseLogitsStage):
    """Measure a bits value, or the unquantized model, by exllamav3 against the base logits."""

    rule = "exl3_evaluate"
    column = "evaluated"
    measures = True
    reads = ("model",)
    # Loads module by module into the GPU; the states of all chunks stay in main memory.
    memory = Memory(8000, 0.4, 0, 0.4)
    time = Time(15, 50)
    counted = evaluation.BY_ENGINE
    bytes_per_weight = 0.5
    gpu = "layer"
    on_gpu = True
    fixed_threads = 2
    priority = 1
    typical = 1_000

    def size(self, artifact: Artifact, sizes: Sizing) -> None:
        """None: the file is small, and no formula predicts its size."""


class Exl3Family(Family):
    """EXL3 directories, one for each bits value; on the hub a branch or a repository each."""

    name, title, phrase = "exl3", "EXL3", " as EXL3 for ExLlamaV3"
    library, tags = "exllamav3", ("exl3", "exllamav3")
    note = "EXL3 runs on GPUs only."
    colours, diamond = ("#a3203f", "#f08a9b"), True
    section = Exl3
    section_says = "Make EXL3 directories."
    repository_says = (
        "Repository for EXL3: one branch for each bits value, or, with `{form}` (4.0bpw) in its "
        "name, one repository for each."
    )
    repository_by_form = True
    form_pattern = re.compile(rf"\d+(\.\d+)?bpw{SUFFIX}|{UNQUANTIZED}", re.IGNORECASE)
    stages = (Exl3QuantizeStage(), Exl3EvaluateStage())
    quantized = {"exl3_quantize": True}
    own_corpora = {OWN_SET: "exllamav3's own calibration set"}
    needs_gpu = by_base_logits = True

    def names(self, model: Any) -> list[str]:
        """A form for each bits value: `5.0bpw-exl3` for `bits: 5`."""
        return [f"{float(bits)}bpw{SUFFIX}" for bits in model.exl3.bits]

    def check(self, checks: Any, at: tuple, name: str, model: Any) -> None:
        if model.exl3.corpus != OWN_SET:
            checks.uses_corpus((*at, "corpus"), model.exl3.corpus)

    def repository_form(self, model: Any, form: str) -> str:
        """4.0bpw for 4.0bpw-exl3."""
        return self.lines.branch(form)

    def make(self, shared: Any, name: str, model: Any, weights: Artifact) -> Forms:
        section, tools = model.exl3, by_extension(shared, "exllamav3")
        text = {} if section.corpus == OWN_SET else {"corpus": shared.corpus(section.corpus)}
        options = section.model_dump(include={"head_bits", "rows", "length", "shard_size"})
        forms = {
            form: Artifact(
                f"results/{name}/exl3/{form.removesuffix(SUFFIX)}",
                "exl3_quantize",
                name,
                {"bits": bits, **options},
                inputs={"model": weights, **text},
                directory=True,
                **tools,
            )
            for bits, form in zip(section.bits, self.names(model), strict=True)
        }
        found = Forms([*forms.values()], forms)
        evaluation.by_engine(
            shared, found, name, model, weights, "exl3_evaluate", "model", UNQUANTIZED, **tools
        )
        return found

    def speedometer(self, shared: Any) -> Speedometer:
        found = by_extension(shared, "exllamav3")
        engine = f"exllamav3 {found['tools']['exllamav3']}"
        return Speedometer(engine, ["exl3_speed.py"], found["uses"])

    def card_options(self, model: Any, forms: dict[str, Artifact]) -> dict[str, Any]:
        return {"exl3": model.exl3.model_dump(include={"corpus", "rows", "length"})}

    def branches(self, name: str, made: Forms) -> dict[str, list[dict[str, Any]]]:
        """The card on main; each bits value on a branch of its own."""
        forms = {self.lines.branch(form): [entry(up, "")] for form, up in made.forms.items()}
        return {"main": []} | forms

    def preflight(self, inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
        """Check the GPU and the architecture."""
        yield from super().preflight(inspector, name, model)
        config, known = inspector.config(name) or {}, architectures()
        for asked in config.get("architectures") or []:
            if known and asked not in known:
                text = f"{asked}: exllamav3 does not know this architecture; "
                yield Row(name, "problem", f"{text}--config skip=exl3 leaves it out")


def architectures() -> set[str]:
    """The architectures that exllamav3 knows; none if it is not installed yet."""
    place = Path("resources/environments/exllamav3/venv/lib")
    files = place.glob("python*/site-packages/exllamav3/architecture/*.py")
    named = re.compile(r'arch_string = "(\w+)"')
    return {name for file in files for name in named.findall(file.read_text(encoding="utf-8"))}


FAMILY = Exl3Family()

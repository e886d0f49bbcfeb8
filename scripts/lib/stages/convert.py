"""The unquantized GGUF: a conversion, or a file of the user's own."""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lib.formats.mixture import Dims
from lib.formats.weights import header_bytes, is_matrix
from lib.record.artifact import Artifact
from lib.record.bound import Bound
from lib.stages.checked import Inspector, Row
from lib.stages.stage import Cost, Memory, Size, Sizing, Stage, Time, locked_size

QUANTIZED_OUTTYPES = ("q8_0", "tq1_0", "tq2_0")
OUTTYPE_BITS = {"f32": 32.0, "q8_0": 8.5}


class ConvertStage(Stage):
    """Convert a model directory, with llama.cpp's converter."""

    rule = "convert"
    column = "gguf"
    bound = Bound.ANYWHERE
    cost = Cost(6, 2.5)
    is_long = is_weights = True
    # The converter maps its input lazily and writes tensor by tensor; a tensor exists as bf16,
    # float32 and output, several at a time (2.1 GB in all of 0.5 GB, by 8 processes, measured;
    # scripts/convert.py bounds it). 5% covers a layer's experts, which are stacked before they are
    # written.
    memory = Memory(2000, 3.0, 4000, 0.05)
    time = Time(15, 60)
    output = 1.0

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """The bytes of each tensor in its type, plus the header."""
        model, bits = artifact.inputs["model"], outtype_bits(artifact)
        weights = sizes.weights(model)
        if weights is None:
            return locked_size(model, sizes, bits)
        tensors = sizes.tensors(model)
        data = sum(
            math.prod(dims) * (bits if is_matrix(name, dims) else 32) / 8
            for name, dims in tensors.items()
        )
        return Size(round(data) + header_bytes(weights, len(tensors)), "tensors")


class SourceGgufStage(Stage):
    """Link to a GGUF file, and check it."""

    rule = "source_gguf"
    bound = Bound.ANYWHERE
    column = ConvertStage.column
    is_weights = True
    memory, time, output = ConvertStage.memory, ConvertStage.time, ConvertStage.output

    def tensors(self, artifact: Artifact, sizes: Sizing) -> dict[str, Dims]:
        """The tensors of the user's file."""
        from lib.formats.gguf_file import read_gguf  # takes 0.08 s

        return {tensor.name: tensor.shape for tensor in read_gguf(Path(artifact.file)).tensors}


STAGES = (ConvertStage(), SourceGgufStage())


def outtype_bits(conversion: Artifact) -> float:
    """Bits per weight of a conversion's matrices."""
    return OUTTYPE_BITS.get(conversion.options["outtype"], 16.0)


def model_of(conversion: Artifact) -> Artifact:
    """The artifact from which the tensors of an unquantized GGUF are known.

    It is the model directory, or the GGUF itself if that is the user's file.
    """
    return conversion.inputs.get("model", conversion)


def conversion(shared: Any, name: str, model: Any, weights: Artifact | None) -> Artifact:
    """Declare the unquantized GGUF, from which all quants of a model are made.

    It is an intermediate, unless the config lists it among the quants, or asks for a GGUF and no
    quants. Without a `gguf` section it is there for base logits. shared: lib/stages/shared.
    model: lib/config/schema.Model. weights: the model directory; None if the source is a GGUF file.
    """
    path = f"results/{name}/gguf/{name}-{model.conversion}.gguf"
    quants, kept = model.gguf.parted(model.conversion) if model.gguf else ([], False)
    intermediate = not kept and (bool(quants) or model.gguf is None)
    if model.own_gguf:
        tools = {"llama.cpp": shared.llama_cpp}
        return shared.own_file(
            path,
            "source_gguf",
            name,
            model.source,
            uses=tools,
            intermediate=intermediate,
            links=True,
        )
    return convert(
        shared,
        name,
        model.conversion,
        weights,
        model=name,
        intermediate=intermediate,
        temporary="bf16" in shared.config.reclaim and intermediate,
    )


def convert(
    shared: Any,
    place: str,
    form: str,
    weights: Artifact,
    uses: dict[str, Artifact] | None = None,
    **details: Any,
) -> Artifact:
    """Declare the conversion results/PLACE/gguf/NAME-FORM.gguf; NAME is the end of PLACE.

    form: the type, such as BF16. weights: the model directory. uses, details: fields of Artifact.
    """
    by = shared.by_llama_cpp()
    return shared.once(
        f"results/{place}/gguf/{PurePosixPath(place).name}-{form}.gguf",
        "convert",
        {"outtype": form.lower(), "model_name": place},
        inputs={"model": weights},
        tools=by["tools"],
        uses=by["uses"] | (uses or {}),
        **details,
    )


def preflight(inspector: Inspector, name: str) -> Iterator[Row]:
    """Check that llama.cpp's converter knows the model's architecture; at most one row."""
    config = inspector.config(name)
    if config is None:
        return
    (architecture, *_) = config.get("architectures") or ["(none)"]
    # Of a multimodal model the converter takes what `text_config` says, with exceptions.
    of_text = (config.get("text_config") or {}).get("architectures") or []
    if inspector.architectures is None:
        yield Row(name, "note", f"{architecture}: not checked, the converter is not there yet")
    elif inspector.architectures.isdisjoint([architecture, *of_text]):
        text = f"{architecture}: the converter of this llama.cpp does not know it"
        yield Row(name, "problem", text)
    else:
        yield Row(name, "ok", f"{architecture}: known to the converter")

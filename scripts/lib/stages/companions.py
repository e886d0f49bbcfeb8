"""GGUF files that llama.cpp loads beside a model's: its projector, its draft, LoRA adapters."""

import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lib.errors import UserError
from lib.formats import lora_adapter
from lib.formats.merge_references import reference_kind
from lib.formats.safetensors import read_header
from lib.formats.weights import header_bytes, is_tower, read_weights
from lib.keys import values
from lib.keys.section import Choice, Read
from lib.keys.values import show
from lib.record.artifact import Artifact
from lib.record.tools import LORA_CONVERTER, own_tool
from lib.stages import extract_lora
from lib.stages.checked import Inspector, Row
from lib.stages.convert import OUTTYPE_BITS, ConvertStage
from lib.stages.sources import reference
from lib.stages.stage import Size, Sizing, locked_size

Outtype = Literal["f16", "bf16", "f32", "q8_0"]
# What llama.cpp's -hf (b10605, common/download.cpp) takes for a quant, or for another kind of file.
# So the type of an adapter, F16, is not in its file's name; and without a tag, -hf takes the first
# file, by name: MODEL.lora-NAME.gguf comes after every MODEL-FORM.gguf.
MISTAKEN = re.compile(
    r"(i?q\d\w*|b?f16|f32)(?![a-z0-9])|mmproj|imatrix|(mtp|eagle3|dflash|dspark)-", re.IGNORECASE
)
NO_TOWER = "its config.json has nothing of vision or audio: the model has no projector"
# How a config.json calls what belongs to a tower: vision_config, audio_config, whisper_config …
TOWER = re.compile("vision|visual|audio|whisper|speech|sound")


# Keys of a config.json that count layers for multi-token prediction. Qwen3-Next's has none.
MTP_COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
UNCOUNTED = "Qwen3NextForCausalLM"
NO_MTP = f"its config.json counts no layers for multi-token prediction ({', '.join(MTP_COUNTS)})"
# What a draft takes over from the model, beside its own layers.
SHARED = re.compile(r"(^|\.)(embed_tokens|norm|lm_head)\.weight$")


def to_outtypes(value: Any, usual: str) -> list[Any]:
    """The types of files of one kind. True and null become the usual one, false none."""
    if value is None or value is True:
        return [usual]
    return [] if value is False else values.to_list(value)


def outtypes(usual: Outtype) -> Any:
    """The kind of a key that says whether files are made, and in which types."""
    reader = partial(to_outtypes, usual=usual)
    return Read(list[Choice(Outtype)], reader, bool | Outtype | list[Outtype])


class MmprojStage(ConvertStage):
    """Convert a multimodal model's tower and projector, with llama.cpp's converter."""

    rule = "mmproj"
    column = "companions"

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """The bytes of each tensor in its type, plus the header."""
        weights = sizes.weights(artifact.inputs["model"])
        if weights is None:
            return None
        shapes = {name: dims for name, dims in weights.tensors.items() if is_tower(name)}
        wide = OUTTYPE_BITS.get(artifact.options["outtype"], 16.0)
        data = sum(
            math.prod(dims) * (wide if len(dims) > 1 and "embed" not in name else 32) / 8
            for name, dims in shapes.items()
        )
        return Size(round(data) + 2000 + 70 * len(shapes), "tensors")


class MtpStage(ConvertStage):
    """Convert a model's layers for multi-token prediction, with llama.cpp's converter."""

    rule = "mtp"
    column = MmprojStage.column
    is_long = False
    output = 0.2

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """The bytes of each tensor in its type, plus the header."""
        weights = sizes.weights(artifact.inputs["model"])
        if weights is None:
            return None
        shapes = {
            name: dims
            for name, dims in weights.tensors.items()
            if is_mtp(name, weights.shape.layers) or (SHARED.search(name) and not is_tower(name))
        }
        bits = OUTTYPE_BITS.get(artifact.options["outtype"], 16.0)
        data = sum(math.prod(d) * (bits if len(d) > 1 else 32) / 8 for d in shapes.values())
        return Size(round(data) + header_bytes(weights, len(shapes)), "tensors")


class LoraStage(ConvertStage):
    """Convert a LoRA adapter, and try it with the unquantized GGUF."""

    rule = "lora"
    column = MmprojStage.column
    is_long = False
    output = 0.1

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """Two bytes a weight, plus the header; of an adapter on the hub the size of its files."""
        adapter = artifact.inputs["adapter"]
        if not adapter.sources:  # it is extracted here, as 16 bits a weight too
            return sizes.of(adapter)
        file = Path(reference(adapter), lora_adapter.WEIGHTS)
        if not file.is_file():
            return locked_size(adapter, sizes)
        tensors = read_header(file).tensors.values()
        weights = sum(math.prod(tensor.shape) for tensor in tensors)
        return Size(2 * weights + 500 + 80 * len(tensors), "tensors")


STAGES = (MmprojStage(), MtpStage(), LoraStage())


def check(checks: Any, at: tuple, name: str, model: Any) -> None:
    """Report mistakes in what lies beside, at the path of `gguf` (lib/config/checks.Checks)."""
    gguf = model.gguf
    for key in ("mmproj", "mtp", "lora"):
        if getattr(gguf, key) and model.own_gguf:
            text = f"needs safetensors, and source is the GGUF file {model.source}"
            checks.add((*at, key), text)
            return
    config = checks.model_config(name) if gguf.mmproj or gguf.mtp else None
    if gguf.mmproj and config is not None and not has_tower(config):
        checks.add((*at, "mmproj"), NO_TOWER)
    if gguf.mtp and config is not None and not has_mtp(config):
        checks.add((*at, "mtp"), NO_MTP)
    own = checks.config.llama_cpp.path
    if gguf.lora and own and not own_tool(checks.place(own), LORA_CONVERTER):
        checks.add((*at, "lora"), f"llama_cpp.path: {own} has no {LORA_CONVERTER}")
    checks.names((*at, "lora"), gguf.lora)
    for adapter, source in gguf.lora.items():
        here = (*at, "lora", adapter)
        if found := MISTAKEN.search(adapter):
            checks.add(here, f"llama.cpp's -hf reads {show(found[0])} as another kind of file")
        if extracted := _extracted(checks.config, source):
            if wrong := extract_lora.fault(checks.config, *extracted):
                checks.add(here, f"{show(source)} {wrong}")
        elif reference_kind(source) not in ("directory", "hub"):
            text = "is neither a directory (./x or /x) nor a hub id (org/name or org/name@revision)"
            checks.add(here, f"{show(source)} {text}")
        elif reference_kind(source) == "hub" or not (place := checks.place(source)).is_dir():
            checks.reference(here, source, lora_adapter.CONFIG)
        elif wrong := lora_adapter.fault(place) or _misfit(checks, place, model):
            checks.add(here, f"{show(source)} {wrong}")


def _extracted(config: Any, source: str) -> tuple[str, str] | None:
    """(model, adapter) of an adapter that a model of the config extracts; None for another."""
    found = extract_lora.named_by(source)
    return found if found and found[0] in config.models else None


def _misfit(checks: Any, adapter: Path, model: Any) -> str | None:
    """Why an adapter is for another model; None if it fits, or the model is not on this machine."""
    place = checks.place(model.source or "")
    if model.is_made or not (place / "config.json").is_file():
        return None
    try:
        return lora_adapter.misfit(adapter, read_weights(place).tensors)
    except (UserError, OSError):
        return None  # of the model: the step that reads it says so


def has_tower(config: dict[str, Any]) -> bool:
    """Whether a config.json tells of a vision or audio tower."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    return any(TOWER.search(key) for part in parts for key in part)


def has_mtp(config: dict[str, Any]) -> bool:
    """Whether a config.json tells of layers for multi-token prediction."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    counted = any(part.get(key) for part in parts for key in MTP_COUNTS)
    return counted or UNCOUNTED in (config.get("architectures") or [])


def is_mtp(name: str, layers: int) -> bool:
    """Whether a tensor of a model directory belongs to a layer for multi-token prediction.

    layers: of the model itself, after which such layers may be numbered.
    """
    number = re.search(r"\blayers\.(\d+)\.", name)
    return bool(re.search(r"\bmtp\.", name)) or (number is not None and int(number[1]) >= layers)


def preflight(inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
    """Check that the model has what is asked for, and that llama.cpp's converter knows it."""
    gguf = model.gguf
    config = inspector.config(name) if gguf.mmproj or gguf.mtp else None
    if config is None:
        return
    named = [*(config.get("architectures") or ["(none)"])]
    seeing = named + ((config.get("vision_config") or {}).get("architectures") or [])
    asked = []
    if gguf.mmproj:
        lacking = None if has_tower(config) else NO_TOWER
        asked.append(("mmproj", lacking, inspector.projectors, seeing, "projector"))
    if gguf.mtp:
        lacking = None if has_mtp(config) else NO_MTP
        asked.append(("mtp", lacking, inspector.drafts, named, "draft"))
    for key, lacking, known, any_of, what in asked:
        if not lacking and known is not None and known.isdisjoint(any_of):
            lacking = f"{named[0]}: the converter of this llama.cpp knows no {what} of it"
        if lacking:
            yield Row(f"models.{name}.gguf.{key}", "problem", lacking)


def declare(
    shared: Any, name: str, model: Any, weights: Artifact, conversion: Artifact
) -> dict[str, Artifact]:
    """{what it is: artifact} of the files beside a model's GGUFs.

    weights: the model directory. conversion: the unquantized GGUF, by which they are tried.
    """
    found, inputs = {}, {"model": weights}
    by = {
        "tools": {"llama.cpp": shared.llama_version},
        "uses": {"llama.cpp": shared.llama_cpp, "gguf": conversion},
    }
    if model.gguf.mmproj and model.merge is not None:
        # mergekit (0.1.5) leaves out what tells how images are prepared.
        inputs["base"] = shared.weights(first_source(shared.config, name))
    for outtype in model.gguf.mmproj:
        form = outtype.upper()
        found[f"mmproj {form}"] = Artifact(
            f"results/{name}/gguf/mmproj-{name}-{form}.gguf",
            "mmproj",
            name,
            {"outtype": outtype, "model_name": name},
            inputs=inputs,
            **by,
        )
    for outtype in model.gguf.mtp:
        form = outtype.upper()
        found[f"mtp {form}"] = Artifact(
            f"results/{name}/gguf/mtp-{name}-{form}.gguf",
            "mtp",
            name,
            {"outtype": outtype, "model_name": name},
            inputs={"model": weights},
            **by,
        )
    for adapter, source in model.gguf.lora.items():
        extracted = _extracted(shared.config, source)
        made = extract_lora.declare(shared, *extracted) if extracted else shared.weights(source)
        found[f"lora {adapter}"] = Artifact(
            f"results/{name}/gguf/{name}.lora-{adapter}.gguf",
            "lora",
            name,
            {"name": adapter},
            inputs={"model": weights, "adapter": made},
            **by,
        )
    return found


def first_source(config: Any, name: str) -> str:
    """The model from outside that comes first in a model's tree of merges."""
    while name in config.models:
        name = config.models[name].parts()[0]
    return name

"""Whether the files of somebody else's model are what they say, before anything is made of them.

A header or a config.json that lies makes tools end in tracebacks, take all memory, or go on for
hours; each lie that is known is told here in one line. What is only read later (a pickle, code of
the model's own) is not opened. Standard library only.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.formats.model_files import PICKLES, model_files
from lib.formats.safetensors import LENGTH, Tensor, read_header

# Bytes of a header that the safetensors library reads, and of a file beside the weights; the
# largest tokenizers take 40 MB.
LARGEST_HEADER, LARGEST_SIDE_FILE = 100_000_000, 128 << 20
MOST_TENSORS = 150_000  # of one file; the largest models have 100,000 in all
# Keys of a config.json that count something; of some models a list has one number for each layer.
COUNTS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_nextn_predict_layers")
MOST, MOST_LAYERS = 2**31 - 1, 10_000
# {data type: bytes of a value}; others are not judged.
DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


def check(directory: Path, allow_pickle: bool = False) -> list[Path]:
    """The files of a model or LoRA adapter that a build step needs, as `model_files` gives them.

    Raises UserError as that does, and with a line for each file that is not what it says.
    """
    problems, found = [], files(directory, allow_pickle)
    for file in found:
        try:
            check_file(file)
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    return found


def files(directory: Path, allow_pickle: bool = False) -> list[Path]:
    """As `model_files`, of a directory whose index may be anything."""
    for index in directory.glob("*.index.json"):
        if index.is_file():
            check_file(index)
    return model_files(directory, allow_pickle)


def check_file(file: Path) -> None:
    """Raise UserError if a file of a model is not what it says; and OSError."""
    if any(file.match(pattern) for pattern in PICKLES):
        return
    if file.suffix == ".safetensors":
        _check_safetensors(file)
    elif file.name.endswith(".index.json"):
        _check_size(file)
        if not _is_index(file):
            raise UserError(f"{file}: not a safetensors index")
    elif file.suffix == ".json":
        found = document(file)
        if not isinstance(found, dict):
            raise UserError(f"{file}: not a JSON object, which every such file is")
        if file.name == "config.json" and (wrong := config_fault(found)):
            raise UserError(f"{file}: {wrong}")
    else:
        _check_size(file)


def document(file: Path) -> Any:
    """The content of a JSON file beside a model's weights. Raises UserError and OSError."""
    _check_size(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{file}: lists within lists without end") from None


def _check_size(file: Path) -> None:
    if (size := file.stat().st_size) > LARGEST_SIDE_FILE:
        most = f"no such file has more than {LARGEST_SIDE_FILE >> 20} MiB"
        raise UserError(f"{file}: {size} bytes, and {most}")


def _is_index(file: Path) -> bool:
    try:
        shards = document(file)["weight_map"].values()
    except (UserError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return all(isinstance(name, str) for name in shards)


def config_fault(config: dict[str, Any]) -> str | None:
    """Why a config.json cannot be a model's, in words; None if it can."""
    for key in ("text_config", "vision_config", "quantization_config"):
        if not isinstance(config.get(key), dict | None):
            return f"{key} is not an object"
    for part in (config, config.get("text_config") or {}):
        for key in (*COUNTS, *EXPERT_COUNTS, *LAYER_COUNTS):
            values = part.get(key)
            most = MOST_LAYERS if key in LAYER_COUNTS else MOST
            for value in values if isinstance(values, list) else [values]:
                if value is not None and not _counts(value, most):
                    return f"{key} is not a number from 0 to {most}"
        names = part.get("architectures") or []
        if not isinstance(names, list) or not all(map(_is_name, names)):
            return "architectures is not a list of names"
        if not _is_name(part.get("model_type") or ""):
            return "model_type is not a name"
    return None


def _counts(value: Any, most: int) -> bool:
    return isinstance(value, int | float) and 0 <= value <= most


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) < 256


def _check_safetensors(file: Path) -> None:
    """As the safetensors library judges a header, which it reads only when a build is under way."""
    with file.open("rb") as stream:
        first = stream.read(LENGTH.size)
    try:
        (length,) = LENGTH.unpack(first)
    except struct.error:
        raise UserError(f"{file}: not a safetensors file (it has {len(first)} bytes)") from None
    if length > LARGEST_HEADER:
        raise UserError(f"{file}: not a safetensors file (a header of {length} bytes)")
    try:
        tensors = read_header(file).tensors
    except RecursionError:
        raise UserError(f"{file}: not a safetensors file (lists within lists)") from None
    if len(tensors) > MOST_TENSORS:
        raise UserError(f"{file}: {len(tensors)} tensors, as no file of a model has")
    at = 0
    ordered = sorted(tensors.items(), key=lambda item: _place(file, *item))
    for name, tensor in ordered:
        if not _is_name(name):
            raise UserError(f"{file}: {name[:50]!r} is no name of a tensor")
        if tensor.first != at:
            raise UserError(f"{file}: {name} does not begin where the tensor before it ends")
        at = tensor.end


def _place(file: Path, name: str, tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor, and the one after its last. Raises UserError if they lie."""
    numbers = (*tensor.shape, tensor.first, tensor.end)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise UserError(f"{file}: the shape or place of {name[:50]!r} is no list of numbers")
    size = tensor.end - tensor.first
    each = DTYPES.get(tensor.dtype) if isinstance(tensor.dtype, str) else 0
    if each == 0 or (each and size != each * math.prod(tensor.shape)) or size < 0:
        told = f"{str(list(tensor.shape))[:60]} of type {str(tensor.dtype)[:20]}"
        raise UserError(f"{file}: {name[:50]!r} has {size} bytes, which is not {told}")
    return tensor.first, tensor.end

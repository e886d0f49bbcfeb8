"""Reads the header of a GGUF file from somebody else, within bounds.

lib/formats/gguf_file.py believes what a header says; with this before it, a header that lies ends
in one line, and not in hours or in all memory. It is a module of its own because the other's code
decides mixes.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.formats.gguf_file import ARRAY, GgufFile, _Cursor, _read

# Texts of a header, and what one text or array may hold, which no model comes near.
MOST_TEXTS, LONGEST = 2_000_000, 16 << 20
MOST_TENSORS, MOST_KEYS = 200_000, 100_000
WHOLE, HEAD, COUNTED = struct.Struct("<Q"), struct.Struct("<IQ"), struct.Struct("<IQQ")
MOST_DIMENSIONS = 4  # as ggml has them
MOST_AFTER, LARGEST_IMATRIX = 1 << 30, 4 << 30  # bytes
# Keys of an architecture that count something, for the whole model or for each layer.
COUNTS = ("embedding_length", "context_length", "vocab_size", "full_attention_interval")
COUNTS += ("expert_count", "nextn_predict_layers", "attention.head_count", "attention.key_length")
COUNTS += ("attention.head_count_kv", "attention.value_length", "attention.sliding_window")
COUNTS += ("ssm.inner_size", "ssm.state_size", "ssm.conv_kernel", "shortconv.l_cache")
MOST, MOST_LAYERS = 2**31 - 1, 10_000


class _Careful(_Cursor):
    """A cursor that raises UserError where a header wants more than it may have."""

    def __init__(self, path: Path, data: mmap.mmap):
        super().__init__(data)
        self.path, self.texts = path, 0

    def refuse(self, what: str) -> None:
        raise UserError(f"{self.path}: its header has {what}, as no model's has")

    def string(self) -> str:
        self.texts += 1
        (length,) = WHOLE.unpack_from(self.data, self.at)
        if self.texts > MOST_TEXTS or length > LONGEST:
            self.refuse("texts without end")
        return super().string()

    def value(self, kind: int) -> Any:
        if kind == ARRAY:
            inner, count = HEAD.unpack_from(self.data, self.at)
            if inner == ARRAY:
                self.refuse("arrays within arrays")
            if count > LONGEST:
                self.refuse("an array without end")
        return super().value(kind)


def read_careful(path: Path) -> GgufFile:
    """As gguf_file.read_gguf, of a file that may say anything. Raises UserError and OSError."""
    if path.stat().st_size < 24:
        raise UserError(f"{path}: not a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise UserError(f"{path}: not a GGUF file")
        _, tensors, keys = COUNTED.unpack_from(data, 4)
        if tensors > MOST_TENSORS or keys > MOST_KEYS:
            raise UserError(f"{path}: {tensors} tensors and {keys} keys, as no model has")
        try:
            found = _read(path, _Careful(path, data))
        except (struct.error, OverflowError, MemoryError, TypeError, ZeroDivisionError):
            raise UserError(f"{path}: its header is cut off or damaged") from None
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: its header has an unknown type ({error})") from None
    if wrong := _fault(found):
        raise UserError(f"{path}: {wrong}")
    return found


def check_imatrix(path: Path) -> None:
    """Raise UserError if an importance matrix is too large or its header lies; and OSError."""
    if path.stat().st_size > LARGEST_IMATRIX:
        raise UserError(f"{path}: larger than any importance matrix ({LARGEST_IMATRIX >> 30} GiB)")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        read_careful(path)


def _fault(file: GgufFile) -> str | None:
    """What a header says that cannot be, in words; None if there is nothing."""
    for key in ("general.architecture", "general.type", "general.name", "tokenizer.chat_template"):
        if not isinstance(file.metadata.get(key, ""), str):
            return f"{key} is no text"
    architecture = file.metadata.get("general.architecture", "")
    if not architecture.isprintable():
        return f"the architecture {architecture[:50]!r} is no name"
    counts = {f"{architecture}.{key}": MOST for key in COUNTS}
    counts |= {f"{architecture}.block_count": MOST_LAYERS, "split.count": MOST, "split.no": MOST}
    for key, most in counts.items():
        value = file.metadata.get(key, 0)
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int) or not 0 <= number <= most:
                return f"{key} is not a number from 0 to {most}"
    end = max((tensor.offset + tensor.size for tensor in file.tensors), default=0)
    if file.tensors and file.path.stat().st_size - end > MOST_AFTER:
        return "it goes on for more than 1 GiB after its last tensor"
    for tensor in file.tensors:
        many = len(tensor.shape) > MOST_DIMENSIONS or tensor.elements >= 2**63
        if many or not tensor.elements:
            return f"its tensor {tensor.name[:50]!r} has a shape that ggml has not"
    return None

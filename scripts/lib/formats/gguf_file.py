"""Reads the header of a GGUF file: its metadata, and where its tensors lie.

gguf's own GGUFReader makes an array for each token of the vocabulary, which takes seconds for a
real model. This module reads no tensor data.
"""

import mmap
import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from lib.errors import UserError

STRING, ARRAY = 8, 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


class Tensor(NamedTuple):
    """A tensor of a GGUF file.

    shape: in ggml's order, the row width first. type: the number of its ggml type.
    offset: where its data begins, in bytes from the start of the file. size: bytes of its data.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """The number of weights."""
        return prod(self.shape)

    @property
    def type_name(self) -> str:
        """The name of its ggml type, such as Q4_K or BF16."""
        return GGMLQuantizationType(self.type).name


class GgufFile(NamedTuple):
    """The header of a GGUF file.

    metadata: {key: decoded value}. raw: {key: its type and value as the bytes of the file}.
    tensors: in the file's order.
    """

    path: Path
    metadata: dict[str, Any]
    raw: dict[str, bytes]
    tensors: tuple[Tensor, ...]


class _Cursor:
    """A position in the header, in bytes. Each read moves it on."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 0

    def unpack(self, code: str) -> tuple:
        values = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return values

    def scalar(self, code: str) -> Any:
        return self.unpack(code)[0]

    def string(self) -> str:
        length = self.scalar("<Q")
        if self.at + length > len(self.data):
            raise struct.error
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.scalar("<I"), self.scalar("<Q")
            if inner in SCALARS:
                return list(self.unpack(f"<{count}{SCALARS[inner][1]}"))
            return [self.value(inner) for _ in range(count)]
        return self.scalar(SCALARS[kind])


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file of version 2 or 3.

    Raises UserError if it is no such file, is cut off or damaged, or has a type that gguf does not
    know; and OSError.
    """
    if path.stat().st_size < 24:
        raise UserError(f"{path}: not a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise UserError(f"{path}: not a GGUF file")
        try:
            return _read(path, _Cursor(data))
        except (struct.error, OverflowError, MemoryError):
            raise UserError(f"{path}: its header is cut off or damaged") from None
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: its header has an unknown type ({error})") from None


def _read(path: Path, cursor: _Cursor) -> GgufFile:
    cursor.at = 4
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise UserError(f"{path}: GGUF version {version} is not supported")
    n_tensors, n_values = cursor.scalar("<Q"), cursor.scalar("<Q")
    metadata, raw = {}, {}
    for _ in range(n_values):
        key = cursor.string()
        start = cursor.at
        metadata[key] = cursor.value(cursor.scalar("<I"))
        raw[key] = cursor.data[start : cursor.at]
    found = []
    for _ in range(n_tensors):
        name = cursor.string()
        shape = tuple(cursor.scalar("<Q") for _ in range(cursor.scalar("<I")))
        found.append((name, shape, cursor.scalar("<I"), cursor.scalar("<Q")))
    alignment = metadata.get("general.alignment", 32)
    data_start = -(-cursor.at // alignment) * alignment
    tensors = []
    for name, shape, kind, offset in found:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        size = prod(shape) // block * block_bytes
        tensors.append(Tensor(name, shape, kind, data_start + offset, size))
        if data_start + offset + size > len(cursor.data):
            raise UserError(f"{path}: it ends before the data of its tensor {name}")
    return GgufFile(path, metadata, raw, tuple(tensors))

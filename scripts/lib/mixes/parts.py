"""A model's tensors in several types, of which any mix can be run without writing it.

llama.cpp loads a model from numbered files, as llama-gguf-split makes them. Here each tensor in
each type is such a file, and a mix is a directory of links to some of them. (llama-perplexity
b10605 computes the same from it as from the whole file.)
"""

import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from lib.formats.gguf_file import GgufFile, Tensor
from lib.mixes.candidates import ALIGNMENT

UINT16, INT32 = 2, 5  # numbers of GGUF's types of values
CHUNK = 1 << 26


class Parts:
    """The parts of one model, in a directory.

    base: the unquantized model, of which there is a part for every tensor once `add` has taken it.
    """

    def __init__(self, place: Path, base: GgufFile):
        self.place, self.base = place, base
        self._numbers = {tensor.name: number for number, tensor in enumerate(base.tensors, 2)}

    def add(self, source: GgufFile) -> None:
        """Make a part of each tensor of a file of the same model."""
        self.place.mkdir(parents=True, exist_ok=True)
        if source is self.base and not self._header.exists():
            fields = [_field(key, raw) for key, raw in source.raw.items()]
            self._write(self._header, [*fields, *self._place_of(1)])
        for tensor in source.tensors:
            part = self._part(tensor.name, tensor.type_name)
            if not part.exists():
                fields = self._place_of(self._numbers[tensor.name])
                self._write(part, fields, tensor, _content(source.path, tensor.offset, tensor.size))

    def widen(self, name: str) -> None:
        """Make a part of a tensor of the base in f32, in which each of its weights is the same."""
        tensor = next(tensor for tensor in self.base.tensors if tensor.name == name)
        part = self._part(name, "f32")
        if not part.exists():
            raw = b"".join(_content(self.base.path, tensor.offset, tensor.size))
            rows = np.frombuffer(raw, np.uint8).reshape(tensor.elements // tensor.shape[0], -1)
            wide = dequantize(rows, GGMLQuantizationType(tensor.type))
            kind = GGMLQuantizationType.F32
            tensor = tensor._replace(type=kind, size=wide.nbytes)
            self._write(part, self._place_of(self._numbers[name]), tensor, [wide.tobytes()])

    def link(self, types: Mapping[str, str], directory: Path) -> Path:
        """Make a directory of links to the parts of a mix; the file of it that is to be loaded.

        types: {tensor: type}; the others are as in the unquantized model.
        """
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        count = len(self.base.tensors) + 1
        first = directory / f"m-00001-of-{count:05d}.gguf"
        first.symlink_to(self._header.resolve())
        for tensor in self.base.tensors:
            part = self._part(tensor.name, types.get(tensor.name, tensor.type_name))
            number = self._numbers[tensor.name]
            (directory / f"m-{number:05d}-of-{count:05d}.gguf").symlink_to(part.resolve())
        return first

    @property
    def _header(self) -> Path:
        return self.place / "header"

    def _part(self, tensor: str, kind: str) -> Path:
        return self.place / f"{tensor}.{kind.lower()}"

    def _place_of(self, number: int) -> list[bytes]:
        """Fields that say which of the files one is, counted from 1."""
        tensors = len(self.base.tensors)
        return [
            _field("split.no", struct.pack("<IH", UINT16, number - 1)),
            _field("split.count", struct.pack("<IH", UINT16, tensors + 1)),
            _field("split.tensors.count", struct.pack("<Ii", INT32, tensors)),
        ]

    def _write(
        self,
        path: Path,
        fields: list[bytes],
        tensor: Tensor | None = None,
        content: Iterable[bytes] = (),
    ) -> None:
        """Write a GGUF file of at most one tensor; it has its name when it is whole."""
        unfinished = path.with_name(f".{path.name}")
        with unfinished.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQ", 3, tensor is not None, len(fields)))
            file.writelines(fields)
            if tensor is not None:
                dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
                file.write(_text(tensor.name) + dims + struct.pack("<IQ", tensor.type, 0))
                file.write(bytes(-file.tell() % ALIGNMENT))
                file.writelines(content)
            file.write(bytes(-file.tell() % ALIGNMENT))
        os.replace(unfinished, path)


def _content(path: Path, offset: int, size: int) -> Iterable[bytes]:
    """The bytes of a part of a file, in pieces."""
    with path.open("rb") as file:
        file.seek(offset)
        while size:
            piece = file.read(min(size, CHUNK))
            size -= len(piece)
            yield piece


def _field(key: str, value: bytes) -> bytes:
    return _text(key) + value


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()

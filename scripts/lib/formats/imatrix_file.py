"""Reads importance matrices in both formats of llama-imatrix b10605: the older .dat, and GGUF."""

import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.errors import UserError
from lib.formats.gguf_file import read_gguf


class ImatrixEntry(NamedTuple):
    """The entry of one tensor. A tensor has one matrix, or one for each expert.

    values: sums of squared activations, float32 (matrices * columns,).
    counts: how many tokens each sum is over, (matrices,); in a .dat how many calls, (1,).
    """

    values: np.ndarray
    counts: np.ndarray


class ImatrixData(NamedTuple):
    """An importance matrix.

    entries: {tensor name: entry}. chunks: how many chunks of text it was computed on.
    """

    entries: dict[str, ImatrixEntry]
    chunks: int


def read_imatrix(path: Path) -> ImatrixData:
    """Read an importance matrix. Its first bytes tell which format it has.

    Raises UserError if it is not an importance matrix or is damaged; and OSError.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    return _read_gguf(path) if magic == b"GGUF" else _read_dat(path)


def _read_gguf(path: Path) -> ImatrixData:
    file = read_gguf(path)
    if file.metadata.get("general.type") != "imatrix":
        raise UserError(f"{path}: a GGUF file, but not an importance matrix")
    arrays = {
        t.name: np.fromfile(path, "<f4", count=t.elements, offset=t.offset) for t in file.tensors
    }
    entries = {}
    for name in sorted({key.rpartition(".")[0] for key in arrays}):
        try:
            entries[name] = ImatrixEntry(arrays[f"{name}.in_sum2"], arrays[f"{name}.counts"])
        except KeyError:
            raise UserError(f"{path}: sums and counts of {name} do not match up") from None
    return ImatrixData(entries, file.metadata.get("imatrix.chunk_count", 0))


def _read_dat(path: Path) -> ImatrixData:
    """Read a .dat: the number of entries; name, calls and values of each; chunks; text's path."""
    file = io.BytesIO(path.read_bytes())

    def take(size: int) -> bytes:
        data = file.read(size)
        if len(data) != size:
            raise struct.error
        return data

    def integer() -> int:
        return struct.unpack("<i", take(4))[0]

    entries = {}
    try:
        for _ in range(integer()):
            name = take(integer()).decode("utf-8", errors="replace")
            calls = integer()
            values = np.frombuffer(take(4 * integer()), "<f4")
            entries[name] = ImatrixEntry(values, np.array([calls]))
        chunks = integer()
        take(integer())  # the text's path
    except struct.error:
        raise UserError(f"{path}: not an importance matrix, or cut off") from None
    return ImatrixData(entries, chunks)

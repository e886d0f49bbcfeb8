"""Importance matrices, as llama-imatrix b10605 writes them: the older .dat, and GGUF."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import UserError
from lib.formats.gguf_file import read_gguf


@dataclass(frozen=True)
class ImatrixEntry:
    """values: float32 sums of squared activations, one a column of each of the tensor's matrices;
    counts: how much was summed, one an expert (tokens; for a .dat, calls)."""

    values: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class ImatrixData:
    """entries: by tensor name. chunks: of the text, on which it was computed."""

    entries: dict[str, ImatrixEntry]
    chunks: int


def read_imatrix(path: Path) -> ImatrixData:
    """Read a matrix in either of llama-imatrix's formats, told apart by content.

    Raises UserError and OSError.
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
    """The older format: count; then name, calls, values of each entry; chunks; dataset."""
    data = path.read_bytes()
    at = 0

    def integer() -> int:
        nonlocal at
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        return value

    def take(size: int) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(data):
            raise struct.error
        at += size
        return data[at - size : at]

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

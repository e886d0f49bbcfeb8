"""Reads the header of a safetensors file: which tensors it holds and where their bytes lie.

A file is the header's length (8 bytes), the header (JSON), the tensors' bytes. Described in
https://huggingface.co/docs/safetensors, "Format". Standard library only.
"""

import json
import struct
from pathlib import Path
from typing import NamedTuple

from lib.errors import UserError

LENGTH = struct.Struct("<Q")


class Tensor(NamedTuple):
    """A tensor of a safetensors file.

    dtype: BF16, F32 and the like. shape: the outermost dimension first.
    first, end: its first byte and the one after its last, counted from `Header.start`.
    """

    dtype: str
    shape: tuple[int, ...]
    first: int
    end: int


class Header(NamedTuple):
    """The header of a safetensors file.

    tensors: {name: tensor}. metadata: {key: text}, as the writer has noted it.
    start: where the tensors' bytes begin, in bytes from the beginning of the file.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    start: int


def read_header(file: Path) -> Header:
    """Read the header of a safetensors file.

    Raises UserError if it is no such file, or is not as long as its header says; and OSError.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = LENGTH.unpack(stream.read(LENGTH.size))
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: Tensor(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in header.items()
        }
        start = LENGTH.size + length
        whole = start + max((tensor.end for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise UserError(f"{file}: not a safetensors file ({error})") from None
    if size != whole:
        message = f"{file}: {size} bytes, its header wants {whole}: cut off or changed, get it anew"
        raise UserError(message)
    return Header(tensors, metadata, start)

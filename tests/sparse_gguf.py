"""GGUF files with a hole in place of the weights: models of real sizes that take no disk."""

import math
import os
from pathlib import Path

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

FLOATS = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}


def write_hole(
    writer: GGUFWriter, path: Path, tensors: dict[str, tuple[tuple[int, ...], GGMLQuantizationType]]
) -> None:
    """Write the header that `writer` has collected, and a hole for its tensors.

    tensors: {name: (shape, the outermost dimension first; type)}.
    """
    total = 0
    for name, (shape, kind) in tensors.items():
        block, size = GGML_QUANT_SIZES[kind]
        stored, dtype = shape, numpy.float32
        if kind not in FLOATS:
            stored, dtype = (*shape[:-1], shape[-1] // block * size), numpy.uint8
        length = math.prod(shape) // block * size
        writer.add_tensor_info(name, stored, numpy.dtype(dtype), length, raw_dtype=kind)
        total += _aligned(length)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, _aligned(path.stat().st_size) + total)


def _aligned(size: int) -> int:
    return -(-size // 32) * 32

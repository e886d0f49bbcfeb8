"""Whether a conversion holds the weights of the model directory that it was made from.

A converter may end well and leave another model's file, with the same names and shapes, or one of
which a part was never written. Converters reorder the rows of some matrices and change a few
tensors, so not each of them can be found in the source as it is. Some can in every architecture:
the embedding, and feed-forward layers.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from lib.errors import UserError
from lib.formats.gguf_file import GgufFile
from lib.formats.model_files import model_files
from lib.formats.safetensors import read_header

WIDTH = 64  # weights that are compared of the first, the middle and the last row of a matrix
LEAST = 3  # tensors that have to be comparable, for a verdict
# Rounding from one of these to another moves a weight by less than a hundredth.
TYPES = {"F32", "F16", "BF16"}


def check_source(conversion: GgufFile, source: Path) -> tuple[int, int]:
    """(matrices that are found in the source, those that could be) by parts of each.

    Reads a few kB a matrix. Raises UserError if none of at least LEAST is found, or more of them
    are zeros than in the source.
    """
    theirs = _parts_of(source)
    found = compared = 0
    zeros = Counter({shape: -int((~parts.any(axis=1)).sum()) for shape, parts in theirs.items()})
    for tensor in conversion.tensors:
        shape = tensor.shape[::-1]
        if tensor.type_name not in TYPES or shape not in theirs:
            continue
        part = _parts(conversion.path, tensor.offset, shape, tensor.type_name)
        if not part.any():
            zeros[shape] += 1
            if zeros[shape] > 0:
                raise UserError(f"{conversion.path.name}: its tensor {tensor.name} is zeros")
            continue
        compared += 1
        small = 1e-3 * float(np.abs(part).max())  # which F16 may round to anything
        near = np.isclose(theirs[shape], part, rtol=0.01, atol=small)
        found += bool(near.all(axis=1).any())
    if compared >= LEAST and not found:
        raise UserError(
            f"{conversion.path.name}: none of its {compared} matrices has the weights of {source}: "
            "the converter has made another model's file"
        )
    return found, compared


def _parts_of(source: Path) -> dict[tuple[int, ...], np.ndarray]:
    """{shape: parts of each matrix of this shape, (matrices, 3 x WIDTH), float32}."""
    found = defaultdict(list)
    for file in model_files(source, allow_pickle=True):
        if file.suffix != ".safetensors":
            continue
        header = read_header(file)
        for tensor in header.tensors.values():
            if tensor.dtype in TYPES and _is_matrix(tensor.shape):
                start = header.start + tensor.first
                found[tensor.shape].append(_parts(file, start, tensor.shape, tensor.dtype))
    return {shape: np.stack(parts) for shape, parts in found.items()}


def _parts(file: Path, start: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The parts of a matrix that begins at byte `start` of a file: (3 x WIDTH,), float32."""
    rows, width = shape
    kind = GGMLQuantizationType[dtype]
    _, size = GGML_QUANT_SIZES[kind]
    bits = [
        np.fromfile(file, np.uint8, WIDTH * size, offset=start + row * width * size)
        for row in (0, rows // 2, rows - 1)
    ]
    return dequantize(np.concatenate(bits), kind).ravel()


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[1] >= WIDTH

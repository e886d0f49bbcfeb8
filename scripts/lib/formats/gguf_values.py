"""The values of a GGUF's tensors."""

import numpy as np

from lib.errors import UserError
from lib.formats.gguf_file import GgufFile

# Where in a block of a type its scales lie, 16-bit floats: byte offsets (ggml-common.h). IQ1_M's
# scale is spread over its block; MXFP4's and NVFP4's are powers of two.
SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q1_0",), (0,)),
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)},
}
# The bits of an exponent, all set in NaN and infinity, of plain floats.
EXPONENTS = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
PIECE = 1 << 24  # bytes that are read at once


def check_finite(file: GgufFile) -> None:
    """Raise UserError if a tensor holds NaN or Inf. One tensor at a time is in memory."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    for tensor in file.tensors:
        data = np.fromfile(file.path, np.uint8, tensor.size, offset=tensor.offset)
        if not np.isfinite(dequantize(data, GGMLQuantizationType(tensor.type))).all():
            raise UserError(f"{file.path}: NaN or Inf in its tensor {tensor.name}")


def check_scales(file: GgufFile) -> None:
    """Raise UserError if a float or a scale of a block is NaN or infinite, in any tensor.

    A block is as finite as its scales are. Reads the whole file.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for tensor in file.tensors:
        name = tensor.type_name
        kind, exponent = EXPONENTS.get(name, EXPONENTS["F16"])
        offsets = (0,) if name in EXPONENTS else SCALES.get(name, ())
        width = np.dtype(kind).itemsize
        step = (
            width if name in EXPONENTS else GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)][1]
        )
        data = np.memmap(file.path, np.uint8, "r", tensor.offset, tensor.size).reshape(-1, step)
        rows = PIECE // step
        for piece in (data[at : at + rows] for at in range(0, len(data) if offsets else 0, rows)):
            for at in offsets:
                bits = np.ascontiguousarray(piece[:, at : at + width]).view(kind)
                if ((bits & exponent) == exponent).any():
                    raise UserError(f"{file.path}: NaN or Inf in its tensor {tensor.name}")

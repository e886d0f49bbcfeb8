"""The values of a GGUF's tensors."""

import numpy as np

from lib.errors import UserError
from lib.formats.gguf_file import GgufFile


def check_finite(file: GgufFile) -> None:
    """Raise UserError if a tensor holds NaN or Inf. One tensor at a time is in memory."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    for tensor in file.tensors:
        data = np.fromfile(file.path, np.uint8, tensor.size, offset=tensor.offset)
        if not np.isfinite(dequantize(data, GGMLQuantizationType(tensor.type))).all():
            raise UserError(f"{file.path}: NaN or Inf in its tensor {tensor.name}")

"""The values of the tensors in a model directory's safetensors files."""

from pathlib import Path

from lib.errors import UserError
from lib.formats.model_files import model_files
from lib.formats.safetensors import read_header


def check_finite(directory: Path) -> None:
    """Raise UserError if a tensor holds NaN or Inf, or if a file is cut off.

    One tensor at a time is in memory.
    """
    from safetensors import safe_open

    for file in model_files(directory):
        if file.suffix != ".safetensors":
            continue
        read_header(file)  # a file that is cut off is told in one line
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                tensor = tensors.get_tensor(name)
                wide = tensor.float() if tensor.element_size() == 1 else tensor  # torch: no FP8
                if tensor.is_floating_point() and not wide.isfinite().all():
                    raise UserError(f"{file}: NaN or Inf in its tensor {name}")

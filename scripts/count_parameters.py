"""Print {"parameters": N} for a model directory: the number of weights in its *.safetensors."""

import argparse
import json
import math
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.safetensors import read_header


def parameters(directory: Path) -> int:
    """The number of elements of all tensors in the *.safetensors files, from their headers.

    Raises UserError for a file that is not whole. It names the file itself, not a link to it.
    """
    return sum(
        math.prod(tensor.shape)
        for path in directory.glob("*.safetensors")
        for tensor in read_header(path.resolve()).tensors.values()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="model directory")
    directory = parser.parse_args().directory
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such directory")
    try:
        count = parameters(directory)
    except OSError as error:  # about a file behind a link, which the command line does not name
        raise UserError(f"{error.filename}: {error.strerror}") from None
    print(json.dumps({"parameters": count}))


if __name__ == "__main__":
    program(main)

"""Print {"parameters": N} for a model directory, from the headers of its safetensors files."""

import argparse
import json
import math
import struct
from pathlib import Path


def parameters(directory: Path) -> int:
    """The number of elements of all tensors; adapters count as what they hold."""
    return sum(
        math.prod(tensor["shape"])
        for path in directory.glob("*.safetensors")
        for name, tensor in header(path).items()
        if name != "__metadata__"
    )


def header(path: Path) -> dict:
    """The header of a safetensors file: {tensor: {dtype, shape, data_offsets}}."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    print(json.dumps({"parameters": parameters(parser.parse_args().directory)}))


if __name__ == "__main__":
    main()

"""Print {"parameters": N} for a model directory, from the headers of its safetensors files."""

import argparse
import json
import math
import sys
from pathlib import Path

from lib.formats.safetensors import SafetensorsError, read_header


def parameters(directory: Path) -> int:
    """The number of elements of all tensors; adapters count as what they hold.

    Raises SafetensorsError, which names a file by its own place and not by that of a link to it.
    """
    return sum(
        math.prod(tensor.shape)
        for path in directory.glob("*.safetensors")
        for tensor in read_header(path.resolve()).tensors.values()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    try:
        print(json.dumps({"parameters": parameters(parser.parse_args().directory)}))
    except (SafetensorsError, OSError) as error:
        sys.exit(f"count_parameters: {error}")


if __name__ == "__main__":
    main()

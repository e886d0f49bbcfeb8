"""Check that an exllamav2 measurement is whole and has as many layers as the model."""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.exllamav2 import check_measurement, layer_count
from lib.formats.json_file import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measurement", type=Path, required=True, help="measurement.json of exllamav2's converter"
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="model directory, with config.json"
    )
    parser.add_argument("--called", help="its name in messages; default: its path")
    arguments = parser.parse_args()
    layers = layer_count(read_json(arguments.model / "config.json"))
    try:
        check_measurement(arguments.measurement, layers)
    except UserError as error:
        called = arguments.called or str(arguments.measurement)
        raise UserError(str(error).replace(str(arguments.measurement), called)) from None


if __name__ == "__main__":
    program(main)

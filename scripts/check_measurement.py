"""Check that an exllamav2 measurement is one of a model with as many layers as this one."""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.exllamav2 import check_measurement, layer_count
from lib.formats.json_file import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurement", type=Path, required=True, help="measurement.json")
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--called", help="what messages call the measurement; default: its path")
    arguments = parser.parse_args()
    layers = layer_count(read_json(arguments.model / "config.json"))
    try:
        check_measurement(arguments.measurement, layers)
    except UserError as error:
        called = arguments.called or str(arguments.measurement)
        raise UserError(str(error).replace(str(arguments.measurement), called)) from None


if __name__ == "__main__":
    program(main)

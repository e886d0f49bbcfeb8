"""Check that an EXL2 measurement is one of a model with as many layers as this one."""

import argparse
import json
import sys
from pathlib import Path

from lib.formats.exllamav2 import Exl2Error, check_measurement, layer_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurement", type=Path, required=True, help="measurement.json")
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--called", help="what messages call the measurement; default: its path")
    arguments = parser.parse_args()
    try:
        config = json.loads((arguments.model / "config.json").read_text(encoding="utf-8"))
        check_measurement(arguments.measurement, layer_count(config))
    except (Exl2Error, OSError, ValueError) as error:
        text = str(error)
        if arguments.called:
            text = text.replace(str(arguments.measurement), arguments.called)
        sys.exit(f"check_measurement: {text}")


if __name__ == "__main__":
    main()

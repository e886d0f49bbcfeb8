"""Print the quant type that a file with a mix says it is: that of most of its tensors."""

import argparse
from pathlib import Path

from lib.errors import program
from lib.mixes.files import called, read_mix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mix", type=Path, help="a line NAME=TYPE a tensor")
    print(called(read_mix(parser.parse_args().mix)))


if __name__ == "__main__":
    program(main)

"""Print the quant type that a file with a mix says it is: that of most of its weights."""

import argparse
from pathlib import Path

from lib.errors import program
from lib.formats.gguf_file import read_gguf
from lib.mixes.files import called, read_mix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mix", type=Path, help="a line NAME=TYPE a tensor")
    parser.add_argument("--model", type=Path, required=True, help="the unquantized GGUF file")
    args = parser.parse_args()
    print(called(read_mix(args.mix), read_gguf(args.model)))


if __name__ == "__main__":
    program(main)

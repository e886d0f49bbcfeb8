"""Check that a corpus has text in it, before a tool reads it. Exit status 1 if it has none."""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.corpora import fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "file", type=Path, help=".txt file in UTF-8, or .parquet file with a column of text"
    )
    parser.add_argument(
        "--corpus", required=True, help="its name in the config, with or without FILE's suffix"
    )
    arguments = parser.parse_args()
    if wrong := fault(arguments.file):
        name = arguments.corpus.removesuffix(arguments.file.suffix)
        raise UserError(f"corpora.{name}: what it names {wrong}; name a file with text in it")


if __name__ == "__main__":
    program(main)

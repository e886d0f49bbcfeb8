"""Copy a file of the user's own, if it still is what this run was planned with."""

import argparse
import shutil
from pathlib import Path

from lib.errors import UserError, program
from lib.record.digests import sha256_of
from lib.record.wanted import WantedRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--recipe", type=Path, required=True, help="the wanted recipe")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    (identity,) = WantedRecipe.read(arguments.recipe).recipe["sources"].values()
    shutil.copyfile(arguments.file, arguments.output)
    if sha256_of(arguments.output) != identity["sha256"]:
        raise UserError(
            f"{arguments.file}: changed after this run was planned; run the same command again"
        )


if __name__ == "__main__":
    program(main)

"""Copy a file of the user's own. Exit status 1 if it was changed after this run was planned."""

import argparse
import shutil
from pathlib import Path

from lib.errors import UserError, program
from lib.record.digests import sha256_of
from lib.record.wanted import WantedRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the user's file")
    parser.add_argument(
        "--recipe",
        type=Path,
        required=True,
        help="the wanted recipe, JSON that the plan leaves: {artifact, outputs, directory, links, "
        "rule, digest, recipe, inputs, left}; recipe.sources is {name: {sha256: of FILE}}",
    )
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

"""Make a link to the text of a corpus: a local file, a download, or a file of a dataset on the hub.

Downloads go into the user's cache. Exit status 1 if the text has another sha256 than the recipe
says.
"""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.hub.lock import LOCK_FILE
from lib.record.digests import sha256_of
from lib.record.wanted import WantedRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--path", type=Path, help="text in UTF-8, or .parquet, on this machine")
    origin.add_argument("--url", help="where to download it from; needs --sha256")
    origin.add_argument(
        "--hub",
        help="a dataset of config/sources.lock.yaml, org/name[@revision]; needs --file",
    )
    parser.add_argument("--sha256", help="of the file at --url, hex")
    parser.add_argument("--file", help="path of the file in the dataset")
    parser.add_argument(
        "--recipe",
        type=Path,
        required=True,
        help="the wanted recipe, JSON that the plan leaves: {artifact, outputs, directory, links, "
        "rule, digest, recipe, inputs, left}; recipe.sources is {name: {sha256: of the text}}",
    )
    parser.add_argument("--output", type=Path, required=True, help="link to make")
    arguments = parser.parse_args()
    recipe = WantedRecipe.read(arguments.recipe).recipe
    if arguments.path:
        if not arguments.path.is_file():
            raise UserError(f"{arguments.path}: there is no such file")
        arguments.output.symlink_to(arguments.path.absolute())
    elif arguments.url:
        from hub_fetch import fetch_url  # huggingface_hub takes a second

        arguments.output.symlink_to(fetch_url(arguments.url, arguments.sha256))
    else:
        from hub_fetch import link_file

        link_file(arguments.hub, "dataset", arguments.file, arguments.output, LOCK_FILE)
    for identity in recipe["sources"].values():
        if sha256_of(arguments.output) != identity["sha256"]:
            text = "changed while this run was under way; run the same command again"
            raise UserError(f"{arguments.output.resolve()}: {text}")


if __name__ == "__main__":
    program(main)

"""Make the directory of a source: links to only those files of a model that a step may read.

The source is a model directory, or a hub reference, which is fetched at the commit in
config/sources.lock.yaml.
"""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.formats import soundness
from lib.formats.merge_references import reference_kind
from lib.hub.lock import LOCK_FILE
from lib.record.wanted import WantedRecipe
from model_view import make_view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recipe",
        type=Path,
        required=True,
        help="the wanted recipe, JSON that the plan leaves: {artifact, outputs, directory, links, "
        "rule, digest, recipe, inputs, left}; the one key of recipe.sources is 'model REFERENCE', "
        "recipe.options may have allow_pickle",
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    arguments = parser.parse_args()
    recipe = WantedRecipe.read(arguments.recipe).recipe
    (source,) = recipe["sources"]
    reference = source.removeprefix("model ")
    allow_pickle = bool(recipe["options"].get("allow_pickle"))
    if reference_kind(reference) == "directory":
        try:
            soundness.check(Path(reference), allow_pickle)
            make_view(Path(reference), arguments.output, allow_pickle)
        except OSError as error:  # the recipe names it, not the command line
            raise UserError(f"{reference}: {error.strerror}") from None
    else:
        from hub_fetch import link_model  # huggingface_hub takes a second

        link_model(reference, arguments.output, LOCK_FILE, allow_pickle)
        soundness.check(arguments.output, allow_pickle)


if __name__ == "__main__":
    program(main)

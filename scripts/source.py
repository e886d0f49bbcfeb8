"""Make a source's directory: links to just the files of a model that a step may read.

A directory is linked as it is; a reference to the hub is fetched at the locked commit.
"""

import argparse
import sys
from pathlib import Path

from lib.formats.merge_references import reference_kind
from lib.formats.model_files import ModelFilesError
from lib.hub.lock import LOCK_FILE, LockError
from lib.record.wanted import WantedRecipe
from model_view import make_view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="the wanted recipe")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    arguments = parser.parse_args()
    recipe = WantedRecipe.read(arguments.recipe).recipe
    (source,) = recipe["sources"]
    reference = source.removeprefix("model ")
    allow_pickle = bool(recipe["options"].get("allow_pickle"))
    try:
        if reference_kind(reference) == "directory":
            make_view(Path(reference), arguments.output, allow_pickle)
        else:
            from hub_fetch import FetchError, link_model  # huggingface_hub takes a second

            try:
                link_model(reference, arguments.output, LOCK_FILE, allow_pickle)
            except FetchError as error:
                sys.exit(str(error))
    except (LockError, ModelFilesError, OSError) as error:
        sys.exit(f"source: {error}")


if __name__ == "__main__":
    main()

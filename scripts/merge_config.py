"""Write what merge.py needs from a wanted recipe: the merge with directories for names, and as the user wrote it."""

import argparse
import json
from pathlib import Path

import yaml

from lib.errors import program
from lib.formats.merge_references import substitute_references
from lib.record.wanted import WantedRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="the wanted recipe")
    parser.add_argument(
        "stage", type=Path, help="directory for merge.yaml, verbatim.yaml and names.json"
    )
    arguments = parser.parse_args()
    wanted = WantedRecipe.read(arguments.recipe)
    merge = wanted.recipe["options"]["merge"]
    places = {role.removeprefix("model "): f"./{path}" for role, (path, _) in wanted.inputs.items()}
    texts = {
        "merge.yaml": yaml.safe_dump(substitute_references(merge, places), sort_keys=False),
        "verbatim.yaml": yaml.safe_dump(merge, sort_keys=False),
        "names.json": json.dumps({path: name for name, path in places.items()}),
    }
    for name, text in texts.items():
        (arguments.stage / name).write_text(text)


if __name__ == "__main__":
    program(main)

"""Write the files that merge.py reads, from a merge's wanted recipe.

merge.yaml is the merge with a directory in place of each model's name; verbatim.yaml is the merge
as the user wrote it; names.json is {directory: name}.
"""

import argparse
import json
from pathlib import Path

import yaml

from lib.errors import program
from lib.formats.merge_references import substitute_references
from lib.record.wanted import WantedRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "recipe",
        type=Path,
        help="the wanted recipe, JSON that the plan leaves: {artifact, outputs, directory, links, "
        "rule, digest, recipe, inputs, left}; recipe.options.merge is a mergekit configuration, "
        "inputs is {'model NAME': [path, digest]}",
    )
    parser.add_argument("stage", type=Path, help="existing directory for the three files")
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

"""Write the files that moe.py reads, from a mixture's wanted recipe.

moe.yaml is the mixture's configuration with a directory in place of each model's name;
verbatim.yaml is the configuration as the user wrote it; names.json is {directory: name}.
"""

import argparse
import json
from pathlib import Path

import yaml

from lib.errors import program
from lib.formats.moe_references import substitute_moe_references
from lib.record.wanted import WantedRecipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "recipe",
        type=Path,
        help="the wanted recipe, JSON that the plan leaves: {artifact, outputs, directory, links, "
        "rule, digest, recipe, inputs, left}; recipe.options.moe is a configuration of "
        "mergekit-moe, inputs is {'model NAME': [path, digest]}",
    )
    parser.add_argument("stage", type=Path, help="existing directory for the three files")
    arguments = parser.parse_args()
    wanted = WantedRecipe.read(arguments.recipe)
    moe = wanted.recipe["options"]["moe"]
    places = {role.removeprefix("model "): f"./{path}" for role, (path, _) in wanted.inputs.items()}
    texts = {
        "moe.yaml": yaml.safe_dump(substitute_moe_references(moe, places), sort_keys=False),
        "verbatim.yaml": yaml.safe_dump(moe, sort_keys=False),
        "names.json": json.dumps({path: name for name, path in places.items()}),
    }
    for name, text in texts.items():
        (arguments.stage / name).write_text(text)


if __name__ == "__main__":
    program(main)

"""Make a source's directory: links to just the files of a model that a step may read.

Directories are linked here; references to the hub are fetched by hub_fetch.py, at the locked commit.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from lib.lock import LOCK_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="the wanted recipe")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    arguments = parser.parse_args()
    recipe = json.loads(arguments.recipe.read_text())["recipe"]
    (source,) = recipe["sources"]
    reference = source.removeprefix("model ")
    here = Path(__file__).parent
    if reference.startswith((".", "/")):
        command = [here / "model_view.py", "--source", reference]
    else:
        command = [here / "hub_fetch.py", reference, "--lock", LOCK_FILE]
    command += ["--allow-pickle"] if recipe["options"].get("allow_pickle") else []
    command += ["--output", arguments.output]
    sys.exit(subprocess.run([sys.executable, *map(str, command)]).returncode)


if __name__ == "__main__":
    main()

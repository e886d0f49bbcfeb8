"""Make a directory of links to just those files of a model that a build step needs.

The tools are pointed at such a view instead of the model's own directory, so that a card (which
the converter copies into GGUF metadata), a stray file or an old checkpoint never reaches what is
built. Links are absolute; a view is made for one step and thrown away.
"""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.model_files import model_files


def make_view(source: Path, output: Path, allow_pickle: bool = False) -> list[Path]:
    """Link the files of the model in `source` into the directory `output`; returns the links.

    `output` may exist, but then must be empty. Raises UserError and OSError.
    """
    files = model_files(source, allow_pickle)
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise UserError(f"{output}: the view's directory is not empty; remove it first")
    links = []
    for file in files:
        link = output / file.name
        link.symlink_to(file.absolute())
        links.append(link)
    return links


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="model directory")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="take .bin weights where nothing else is there"
    )
    args = parser.parse_args()
    make_view(args.source, args.output, args.allow_pickle)


if __name__ == "__main__":
    program(main)

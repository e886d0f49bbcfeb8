"""Make a view of a model: a directory of links to only those of its files that a step needs.

Tools get the view instead of the model's own directory. So a card (which the converter copies into
GGUF metadata), a stray file or an old checkpoint has no influence on what is built. The links are
absolute. A view is made for one step and deleted after it.
"""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.model_files import model_files


def make_view(source: Path, output: Path, allow_pickle: bool = False) -> list[Path]:
    """Make links in the directory `output` to the files of the model in `source`; the links.

    allow_pickle: accept .bin weights if there are no others. Raises UserError if `source` is no
    whole model or `output` is not empty, and OSError.
    """
    files = model_files(source, allow_pickle)
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise UserError(f"{output}: the view's directory is not empty; remove it first")
    links = [output / file.name for file in files]
    for link, file in zip(links, files, strict=True):
        link.symlink_to(file.absolute())
    return links


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="model directory: safetensors, config.json"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="accept .bin weights if there are no others"
    )
    args = parser.parse_args()
    make_view(args.source, args.output, args.allow_pickle)


if __name__ == "__main__":
    program(main)

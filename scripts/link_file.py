"""Make a link to a file instead of a second copy of it.

Without --final, FILE is the user's own, and the link is symbolic and absolute. With --final, FILE
is another artifact, and the link is a hard link; on file systems without hard links it is symbolic,
relative to the final path. Prints {"link": true}, a note for the artifact's record.
"""

import argparse
import json
import os
from pathlib import Path

from lib.errors import UserError, program


def link(file: Path, output: Path, final: Path | None = None) -> None:
    """Make a link, `output`, to `file`. final: the path to which `output` will be moved."""
    if final is None or file.is_symlink():  # the user's own file gets no second name
        output.symlink_to(file.readlink() if file.is_symlink() and final else file.absolute())
        return
    try:
        os.link(file, output)
    except OSError:  # FAT, some network file systems
        target = Path(os.path.relpath(file, final.parent))
        output.symlink_to(target)
        # So that it leads somewhere from here too, until it is moved.
        folder = Path(os.path.normpath(output.parent / target.parent))
        if not folder.exists():
            folder.symlink_to(file.parent.absolute(), target_is_directory=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="an existing file, of any format")
    parser.add_argument("output", type=Path, help="the link to make")
    parser.add_argument("--final", type=Path, help="the path to which OUTPUT will be moved")
    arguments = parser.parse_args()
    if not arguments.file.exists():
        raise UserError(f"{arguments.file}: there is no such file")
    link(arguments.file, arguments.output, arguments.final)
    print(json.dumps({"link": True}))


if __name__ == "__main__":
    program(main)

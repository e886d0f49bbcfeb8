"""Make a link to a file instead of a second copy of it.

Without --final it is symbolic and absolute: the file is the user's own. With it the file is another
artifact: a hard link, or a symbolic one, relative to the place where it will lie in the end, where
the file system has no hard links. Prints {"link": true} for the record.
"""

import argparse
import json
import os
from pathlib import Path

from lib.errors import UserError, program


def link(file: Path, output: Path, final: Path | None = None) -> None:
    """Link `output` to `file`. final: where `output` will be moved to."""
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the file that is there")
    parser.add_argument("output", type=Path, help="the link to make")
    parser.add_argument("--final", type=Path, help="where the link will lie in the end")
    arguments = parser.parse_args()
    if not arguments.file.exists():
        raise UserError(f"{arguments.file}: there is no such file")
    link(arguments.file, arguments.output, arguments.final)
    print(json.dumps({"link": True}))


if __name__ == "__main__":
    program(main)

"""Files under results/ that Quantmill does not know."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from lib.record import recipe as recipes
from lib.record.layout import is_building


def unrecorded(known: Collection[Path] = ()) -> Iterator[Path]:
    """Yield the files under results/ that no record covers and that are not in `known`."""
    for folder, names, files in os.walk("results"):
        here = Path(folder)
        # Files inside a recorded directory or a building directory belong to it.
        names[:] = [
            name
            for name in names
            if not is_building(name) and not os.path.exists(recipes.path_of(str(here / name)))
        ]
        for name in files:
            path = here / name
            if (
                not name.endswith(recipes.SUFFIX)
                and path not in known
                and not os.path.exists(recipes.path_of(str(path)))
            ):
                yield path

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
        names[:] = [name for name in names if not is_building(name) and not _recorded(here / name)]
        others = (here / name for name in files if not name.endswith(recipes.SUFFIX))
        yield from (path for path in others if path not in known and not _recorded(path))


def _recorded(path: Path) -> bool:
    return os.path.exists(recipes.path_of(str(path)))

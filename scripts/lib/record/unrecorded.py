"""Which paths in a working directory have a record beside them, and which files have none."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from lib.record import recipe as recipes
from lib.record.layout import is_building, needs_no_record


def recorded(*tops: str) -> Iterator[str]:
    """Yield the paths under the directories `tops` that have a file for a record beside them."""
    for here, _, files in _walk(*tops):
        for name in files:
            if name.endswith(recipes.SUFFIX):
                yield str(here / name).removesuffix(recipes.SUFFIX)


def unrecorded(known: Collection[Path] = ()) -> Iterator[Path]:
    """Yield the files under results/ that need a record, have none and are not in `known`."""
    for here, names, files in _walk("results"):
        # Files inside a recorded directory belong to it.
        names[:] = [name for name in names if not _has_record(here / name)]
        paths = (here / name for name in files if not name.endswith(recipes.SUFFIX))
        yield from (
            path
            for path in paths
            if not (path in known or needs_no_record(path) or _has_record(path))
        )


def _walk(*tops: str) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk, for several directories and without the building directories in them."""
    for top in tops:
        for folder, names, files in os.walk(top):
            names[:] = [name for name in names if not is_building(name)]
            yield Path(folder), names, files


def _has_record(path: Path) -> bool:
    return os.path.exists(recipes.path_of(str(path)))

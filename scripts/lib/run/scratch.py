"""Directories in which something is built again, to be compared with what is here."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from lib.record.layout import RUN_STATE

# Of a working directory: what is built there, and what Snakemake keeps.
BUILT = {"results", "resources", "logs", "benchmarks", ".snakemake"}


def new_directory(name: str, links: Iterable[Path]) -> Path:
    """A new directory .snakemake/quantmill/NAME with links to paths of the working directory."""
    scratch = RUN_STATE / name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for path in links:
        place = scratch / path.relative_to(Path.cwd())
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(path)
    return scratch

"""Where things lie in a working directory, beside the artifacts and their records."""

import os
from collections.abc import Iterator
from pathlib import Path

# What Quantmill leaves for its own programs. It may be deleted while no run is at work.
RUN_STATE = Path(".snakemake/quantmill")
SNAKEMAKE_MARK = ".snakemake_timestamp"  # Snakemake puts it into directory() outputs
_SUFFIX = ".building"


def building_directory(artifact: str) -> Path:
    """Where a step works: `.NAME.building`, beside the artifact that it makes."""
    path = Path(artifact)
    return path.with_name(f".{path.name}{_SUFFIX}")


def artifact_of(building: Path) -> str:
    """The artifact that is made in such a directory."""
    return str(building.with_name(building.name[1:].removesuffix(_SUFFIX)))


def hold_file(building: Path) -> Path:
    """The file in such a directory that a step holds while it builds (lib/run/hold.py)."""
    return building / "hold"


def is_building(name: str) -> bool:
    """Whether this is the name of such a directory."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def building_directories(*tops: str) -> Iterator[Path]:
    """All such directories under these directories."""
    for top in tops:
        for folder, names, _ in os.walk(top):
            yield from (Path(folder, name) for name in names if is_building(name))
            names[:] = [name for name in names if not is_building(name)]

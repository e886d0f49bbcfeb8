"""Where things lie in a working directory, except artifacts and records."""

import os
from collections.abc import Iterator
from pathlib import Path

# Files that Quantmill's programs leave for each other. They may be deleted while no run is active.
RUN_STATE = Path(".snakemake/quantmill")
SNAKEMAKE_MARK = ".snakemake_timestamp"  # Snakemake puts it into directory() outputs
SPEED_PAGE = "speed.html"
_SUFFIX = ".building"


def cpu_file(artifact: str) -> Path:
    """The file with the core seconds of the step that made an artifact, beside its benchmark."""
    return Path(f"benchmarks/{artifact.removeprefix('results/')}.cpu")


def speed_directory(model: str) -> Path:
    """The directory of what `snakemake speed` has measured: HOST.json, and a page of all hosts."""
    return Path("results", model, "speed")


def is_speed(path: Path) -> bool:
    """Whether a file is one of those that `snakemake speed` leaves."""
    parts = path.parts
    ours = path.suffix == ".json" or path.name == SPEED_PAGE
    return len(parts) == 4 and path.parent == speed_directory(parts[1]) and ours


def building_directory(artifact: str) -> Path:
    """The directory in which a step builds an artifact: `.NAME.building`, beside the artifact."""
    path = Path(artifact)
    return path.with_name(f".{path.name}{_SUFFIX}")


def artifact_of(building: Path) -> str:
    """The path of the artifact that is built in this directory."""
    return str(building.with_name(building.name[1:].removesuffix(_SUFFIX)))


def hold_file(building: Path) -> Path:
    """The file in this directory that a step keeps locked while it builds (lib/run/hold.py)."""
    return building / "hold"


def is_building(name: str) -> bool:
    """Whether a name, without a path, is that of a building directory."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def building_directories(*tops: str) -> Iterator[Path]:
    """Yield all building directories under the directories `tops`."""
    for top in tops:
        for folder, names, _ in os.walk(top):
            yield from (Path(folder, name) for name in names if is_building(name))
            names[:] = [name for name in names if not is_building(name)]

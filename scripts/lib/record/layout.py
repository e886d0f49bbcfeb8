"""Where things lie in a working directory, except artifacts and records."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Files that Quantmill's programs leave for each other. They may be deleted while no run is active.
RUN_STATE = Path(".snakemake/quantmill")
LOOKS = RUN_STATE / "families.json"  # how families are shown in reports and cards
GALLERY = Path("results/index.html")  # a page of all models, written by each run
SNAKEMAKE_MARK = ".snakemake_timestamp"  # Snakemake puts it into directory() outputs
SPEED_PAGE = "speed.html"
STUDIES = "studies"  # under results/: no model has this name
_SUFFIX = ".building"


def times_file(artifact: str) -> Path:
    """The core seconds and the seconds of the step that made an artifact, beside its benchmark."""
    return Path(f"benchmarks/{artifact.removeprefix('results/')}.cpu")


def log_file(artifact: str) -> str:
    """The log of the step that makes an artifact; wildcards in its path stay as they are."""
    return f"logs/{artifact.removeprefix('results/')}.log"


def home(artifact: str) -> str:
    """The directory of the model or the study that an artifact belongs to: results/NAME/."""
    parts = artifact.split("/")
    return "/".join(parts[: 3 if parts[1] == STUDIES else 2]) + "/"


def speed_directory(model: str) -> Path:
    """The directory of what `snakemake speed` has measured: HOST.json, and a page of all hosts."""
    return Path("results", model, "speed")


def needs_no_record(path: Path) -> bool:
    """Whether a file is no artifact: the gallery, or what `snakemake speed` has measured."""
    parts = path.parts
    measured = path.suffix == ".json" or path.name == SPEED_PAGE
    in_speed = len(parts) == 4 and path.parent == speed_directory(parts[1])
    return path == GALLERY or (in_speed and measured)


def building_directory(artifact: str) -> Path:
    """The directory in which a step builds an artifact: `.NAME.building`, beside the artifact."""
    path = Path(artifact)
    return path.with_name(f".{path.name}{_SUFFIX}")


def artifact_of(building: Path) -> str:
    """The path of the artifact that is built in this directory."""
    return str(building.with_name(building.name[1:].removesuffix(_SUFFIX)))


def hold_file(building: Path) -> Path:
    """The file in this directory that a step keeps locked while it builds (lib/run/hold.py).

    step.sh opens it.
    """
    return building / "hold"


def clear(building: Path) -> None:
    """Remove a building directory whose hold this process has.

    A network file system keeps a file that is open in its directory, under another name (.nfs…),
    until it is closed. So the directory stays; who closes the hold removes it. What somebody reads
    stays too, for the next run to remove.
    """
    clear_but_hold(building)
    with suppress(OSError):
        hold_file(building).unlink()
        building.rmdir()


def clear_but_hold(building: Path) -> None:
    """Remove what steps have left in a building directory whose hold this process has."""
    for path in building.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path != hold_file(building):  # a hold, say, whose client ended before it was closed
            with suppress(OSError):
                path.unlink()


def is_building(name: str) -> bool:
    """Whether a name, without a path, is that of a building directory."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def building_directories(*tops: str) -> Iterator[Path]:
    """Yield all building directories under the directories `tops`."""
    for buildings, _ in left_by_steps(*tops):
        yield from buildings


def left_by_steps(*tops: str) -> Iterator[tuple[list[Path], list[Path]]]:
    """Of each directory under `tops`: its building directories, and records that are not whole."""
    for top in tops:
        for folder, names, files in os.walk(top):
            buildings = [Path(folder, name) for name in names if is_building(name)]
            parts = [Path(folder, name) for name in files if name.startswith(".")]
            yield buildings, [part for part in parts if part.suffix == ".part"]
            names[:] = [name for name in names if not is_building(name)]

"""Checks that the packages of requirements.txt are installed, before anything imports them.

Standard library only.
"""

import os
import sys
from collections.abc import Container
from importlib import metadata
from pathlib import Path

from lib.errors import UserError, plainly

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements.txt"
# The packages of the process that plans, and of its requests to the hub. With `--sdm conda` the
# steps have packages of their own.
PLANNING = {"pydantic", "huggingface_hub"}
# Packages that are known to fail if their major version is lower than that of the pin.
NEW_ENOUGH = {"huggingface_hub", "pydantic", "transformers"}


def pins(requirements: Path) -> dict[str, str]:
    """{package: version} of the lines NAME==VERSION of a file; empty if there is no such file."""
    text = requirements.read_text() if requirements.exists() else ""
    lines = (line.partition("#")[0].strip().partition("==") for line in text.splitlines())
    return {name: version for name, _, version in lines if version}


def unfit(wanted: dict[str, str]) -> list[str]:
    """A text for each package of `wanted`, {name: version}, that is missing or too old to work.

    Other versions than the wanted ones are allowed, because recipes hold all versions that decide
    bytes.
    """
    found, known = [], listed()
    for name, version in wanted.items():
        try:
            there = known.get(_plain(name)) or metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
            continue
        if name in NEW_ENOUGH and int(there.split(".")[0]) < int(version.split(".")[0]):
            found.append(f"{name} {there} is too old ({version} is wanted)")
    return found


def listed() -> dict[str, str]:
    """{package: version} of the installed packages, from the names of their .dist-info directories.

    This is a hundred times as fast as reading what is in these directories.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        for name in os.listdir(place) if os.path.isdir(place) else []:
            package, _, version = name.removesuffix(".dist-info").rpartition("-")
            if name.endswith(".dist-info"):
                found.setdefault(_plain(package), version)
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@plainly
def insist(only: Container[str] | None = None, requirements: Path = REQUIREMENTS) -> None:
    """End Snakemake with one line if a package is missing or too old.

    only: check these packages; None for all. requirements: the file that pins them.
    """
    wanted = {n: v for n, v in pins(requirements).items() if only is None or n in only}
    if found := unfit(wanted):
        raise UserError(f"{', '.join(found)}: pip install -r {requirements}")

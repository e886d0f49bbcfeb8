"""Whether the packages of requirements.txt are there, before anything is imported from them.

Standard library only.
"""

import os
import sys
from collections.abc import Container
from importlib import metadata
from pathlib import Path

from lib.errors import UserError, plainly

REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements.txt"
# With `--sdm conda` the steps have theirs; these are for the process that plans, and for what it
# asks of the hub.
PLANNING = {"pydantic", "huggingface_hub"}
# What is known not to work with a version whose first number is lower than that of the pinned one.
NEW_ENOUGH = {"huggingface_hub", "pydantic", "transformers"}


def pins(requirements: Path) -> dict[str, str]:
    """{package: version} of the lines NAME==VERSION of a file; none where there is no such file."""
    text = requirements.read_text() if requirements.exists() else ""
    lines = (line.partition("#")[0].strip().partition("==") for line in text.splitlines())
    return {name: version for name, _, version in lines if version}


def unfit(wanted: dict[str, str]) -> list[str]:
    """In words: what is missing, and what is too old to work.

    Another version than the pinned one is allowed: recipes hold the versions that decide bytes.
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
    """{package: version} by the names of what pip leaves: reading it takes a hundred times as long."""
    found: dict[str, str] = {}
    for place in sys.path:
        names = os.listdir(place) if os.path.isdir(place) else []
        for name in names:
            package, _, version = name.removesuffix(".dist-info").rpartition("-")
            if name.endswith(".dist-info"):
                found.setdefault(_plain(package), version)
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@plainly
def insist(only: Container[str] | None = None, requirements: Path = REQUIREMENTS) -> None:
    """End Snakemake with a line where a package is missing or too old.

    only: look at these alone.
    """
    wanted = {n: v for n, v in pins(requirements).items() if only is None or n in only}
    if found := unfit(wanted):
        raise UserError(f"{', '.join(found)}: pip install -r {requirements}")

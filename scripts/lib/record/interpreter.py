"""The packages of a Python interpreter that the user names (`environments` of the config)."""

import json
import re
import subprocess
from functools import cache

from lib.errors import UserError

OLDEST = (3, 11)  # that runs our programs
ASKING = "import json, platform; from importlib.metadata import distributions; "
ASKING += "found = [(made.name, made.version) for made in distributions()]; "
ASKING += "print(json.dumps([platform.python_version(), found]))"


@cache
def installed_versions(python: str, names: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The interpreter's version, and {package: its public version}, as package_version has it.

    names: of packages, as in a file of requirements (`mlx[cpu]`). Raises UserError if it cannot be
    run, is too old for our programs, or lacks a package.
    """
    try:
        command = [python, "-c", ASKING]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        version, listed = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise UserError(f"{python} cannot be run as Python: {error}") from None
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise UserError(f"{python} is Python {version}; {wanted} or newer is needed")
    # Of two versions of a package the first is imported.
    there = {_plain(name): found.split("+")[0] for name, found in reversed(listed)}
    asked = {name: _plain(name.partition("[")[0]) for name in names}
    if lacking := [name for name in asked.values() if name not in there]:
        raise UserError(f"{python} has no package {', '.join(lacking)}")
    return version, {name: there[wanted] for name, wanted in asked.items()}


def _plain(name: str) -> str:
    """A package's name without the differences that do not count."""
    return re.sub("[-_.]+", "-", name).lower()

"""Tells that something that a config names is not there."""

import os
from pathlib import Path

from lib.keys.values import show


def absent(what: str, path: str, workdir: str | Path) -> str:
    """`no WHAT 'PATH'`, and for a relative path the directory from which it was looked for."""
    return f"no {what} {show(path)}" + ("" if os.path.isabs(path) else f" in {workdir}")

"""Bounds of configs and locks: what no person's exceeds, and what no file could hold."""

import re
from collections.abc import Mapping
from typing import Any

from lib.errors import UserError

# Mappings and lists within one another, and values: a few lines of YAML aliases make millions.
DEEPEST, MOST = 40, 200_000
IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")


def insist(raw: Mapping[str, Any]) -> None:
    """Raise UserError for a config that is too deep or too large, or has impossible text."""
    count = 0
    for key, value in raw.items():
        todo = [(value, 1)]
        while todo:
            found, depth = todo.pop()
            count += 1
            if count > MOST:
                raise UserError(f"{key}: more than {MOST} values: are there aliases of aliases?")
            if depth > DEEPEST:
                raise UserError(f"{key}: lists and mappings within one another, {DEEPEST} deep")
            if isinstance(found, str):
                _insist_on_text(found, key)
            elif isinstance(found, Mapping):
                todo += [(inner, depth + 1) for pair in found.items() for inner in pair]
            elif isinstance(found, list | tuple):
                todo += [(inner, depth + 1) for inner in found]


def _insist_on_text(text: str, key: str) -> None:
    """Lone surrogates fit no file, and NUL fits no name of a file and no command line."""
    if found := IMPOSSIBLE.search(text):
        raise UserError(f"{key}: no text of a config can have the character {found[0]!a}")

"""The looks of families in reports and cards: their names, words and colours.

Each family declares its looks (lib/stages). This module must not import them from there: then all
code of the stages would be part of a report's recipe, and the report would be stale when the memory
of a stage changes. So a build leaves the looks as JSON (LOOKS in lib/record/layout.py), and
reports and cards read that.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lib.formats.json_file import read_json


@dataclass(frozen=True)
class Look:
    """How a family is shown; the fields are those of lib/stages/family.Family.

    order: its place among the families. bounds: {rule: where what it makes has the same bytes
    again}, in the words of lib/record/bound.Bound.
    """

    name: str
    title: str
    order: int = 0
    phrase: str = ""
    library: str = "transformers"
    tags: tuple[str, ...] = ()
    note: str = ""
    tag: str = ""
    colours: tuple[str, str] = ("#59636e", "#9ba6b2")
    diamond: bool = False
    has_quants: bool = True
    bounds: dict[str, str] = field(default_factory=dict, hash=False)


class Looks(dict[str, Look]):
    """{family: its look}, in the order of the registry. An unknown family is shown by its key."""

    def __missing__(self, name: str) -> Look:
        return Look(name, name)

    @classmethod
    def of(cls, families: Iterable[Any]) -> "Looks":
        """The looks of these families (lib/stages/family.Family), in their order."""
        keys = Look.__dataclass_fields__.keys() - {"order"}
        looks = (
            Look(order=order, **{key: getattr(family, key) for key in keys})
            for order, family in enumerate(families)
        )
        return cls({look.name: look for look in looks})

    def to_json(self) -> str:
        """The looks as the JSON that `read` takes."""
        return json.dumps([asdict(look) for look in self.values()], indent=1)

    @classmethod
    def read(cls, path: Path | None) -> "Looks":
        """Read the JSON that `to_json` gives. path: None for no looks at all.

        Raises UserError if the file cannot be read.
        """
        told = read_json(path) if path else []
        return cls({look["name"]: Look(**look) for look in told})

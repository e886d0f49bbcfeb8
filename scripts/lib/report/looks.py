"""How families are called and shown in reports and cards.

It is declared with each family (lib/stages), which this must not import: a report would count as
made by all that stands there, and be stale when a stage's memory changes. So a step prints it
(scripts/describe_families.py), and reports and cards read that.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib.formats.json_file import read_json


@dataclass(frozen=True)
class Look:
    """How a family is shown; the fields are those of lib/stages/family.Family.

    order: its place among the families.
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


class Looks(dict[str, Look]):
    """{family: how it is shown}, in the order of the registry; what is not told shows its key."""

    def __missing__(self, name: str) -> Look:
        return Look(name, name)

    @classmethod
    def of(cls, families: Iterable[Any]) -> "Looks":
        """Those of all families, in their order (lib/stages/family.Family)."""
        keys = Look.__dataclass_fields__.keys() - {"order"}
        looks = (
            Look(order=order, **{key: getattr(family, key) for key in keys})
            for order, family in enumerate(families)
        )
        return cls({look.name: look for look in looks})

    def to_json(self) -> str:
        """What `read` reads."""
        return json.dumps([asdict(look) for look in self.values()], indent=1)

    @classmethod
    def read(cls, path: Path | None) -> "Looks":
        """From the file that describe_families.py prints; None: nothing is told."""
        told = read_json(path) if path else []
        return cls({look["name"]: Look(**look) for look in told})

"""The license of a merge, from the licenses of all models in its tree.

If all licenses are equal, the merge has the same. If they differ, or one is not known, the license
is `other`, and its name lists all of them. A person must then judge the terms; `snakemake plan`
says so. Standard library and yaml only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import yaml

from lib.units import printable

UNKNOWN = "unknown"
CARD_FACTS = ("license", "license_name", "license_link", "language")
# Characters of a front matter beyond which it is not read, and of a license or a link.
LARGEST, LONGEST = 1 << 20, 200
DEEPEST = 50  # lists within lists


Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class License:
    """A license in a model card's front matter. `name` and `link` belong to an `id` of `other`."""

    id: str
    name: str = ""
    link: str = ""

    @property
    def label(self) -> str:
        """One word for the license: its id, or its name if the id is `other`."""
        return self.name if self.id == "other" and self.name else self.id


class Combined(NamedTuple):
    """The license of a merge. note: a sentence for the plan that tells why; "" if all are equal."""

    license: License
    note: str = ""


def card_facts(front: Mapping[str, object]) -> dict[str, object]:
    """CARD_FACTS of a front matter, as far as they are texts or lists of texts, of some length."""

    def plain(value: object) -> object:
        if isinstance(value, list):
            return [plain(entry) for entry in value[:LONGEST] if not isinstance(entry, list | dict)]
        return printable(str(value)[:LONGEST])

    found = {key: front[key] for key in CARD_FACTS if front.get(key)}
    return {key: plain(value) for key, value in found.items() if not isinstance(value, dict)}


def of_facts(facts: dict[str, object]) -> License | None:
    """The license in a card's front matter or in a lock entry; None if it names none."""
    found = facts.get("license")
    if isinstance(found, list):  # the hub's cards may hold a list
        found = " and ".join(map(str, found))
    if not found or str(found).lower() == UNKNOWN:
        return None
    return License(
        str(found), str(facts.get("license_name") or ""), str(facts.get("license_link") or "")
    )


def combine(sources: dict[str, License | None], given: License | None = None) -> Combined:
    """The license of a model that is made from all sources.

    sources: {reference: its license, None if it is not known}.
    given: the license in the config, if any. It is used as it is; if the sources' differs, the note
        tells so.
    """
    known = set(sources.values())
    if len(known) == 1 and None not in known:
        found, note = Combined(known.pop()), ""
    else:
        labels = sorted({source.label if source else UNKNOWN for source in known})
        listed = ", ".join(
            f"{reference}: {license.label if license else UNKNOWN}"
            for reference, license in sorted(sources.items())
        )
        note = f"other, because its models have different or no licenses ({listed})"
        slug = "-and-".join(re.sub(r"[^a-z0-9.]+", "-", label.lower()) for label in labels)
        found = Combined(License("other", slug or UNKNOWN), note)
    if given is None:
        return found
    if given.label == found.license.label:
        return Combined(given)
    reason = found.note or found.license.label
    return Combined(given, f"{given.label} as the config says; its models: {reason}")


def front_matter(text: str) -> dict[str, object]:
    """The YAML mapping at the head of a model card; {} if it is missing or cannot be read."""
    match = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", text[:LARGEST], re.S)
    try:
        facts = yaml.load(match[1], Loader) if match and _is_plain(match[1]) else None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _is_plain(text: str) -> bool:
    """Whether YAML has no aliases, of which few lines can stand for gigabytes, and is not deep."""
    depth = 0
    for event in yaml.parse(text, Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
            return False
    return True

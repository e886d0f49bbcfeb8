"""The license of a model that is made from others: over the whole tree of a merge.

Equal licenses pass. Where they are unequal, or where one is not known, the license is `other` with
all of them named: what the terms come to is for a person to judge, and `snakemake plan` says so.
Pure standard library and yaml.
"""

import re
from dataclasses import dataclass

import yaml

UNKNOWN = "unknown"


@dataclass(frozen=True)
class License:
    """As a model card's front matter has it; `name` and `link` go with an `id` of `other`."""

    id: str
    name: str = ""
    link: str = ""

    @property
    def label(self) -> str:
        """The one word for it: the id, or the name that `other` has."""
        return self.name if self.id == "other" and self.name else self.id


@dataclass(frozen=True)
class Combined:
    """The license of what is made. note: why, in a sentence for the plan; empty if all are equal."""

    license: License
    note: str = ""


def of_facts(facts: dict[str, object]) -> License | None:
    """The license in a card's front matter (or in a lock entry); None where it names none."""
    found = facts.get("license")
    if isinstance(found, list):  # the hub's cards may hold a list
        found = " and ".join(map(str, found))
    if not found or str(found).lower() == UNKNOWN:
        return None
    return License(
        str(found), str(facts.get("license_name") or ""), str(facts.get("license_link") or "")
    )


def combine(sources: dict[str, License | None], given: License | None = None) -> Combined:
    """The license over all `sources` (reference -> license, None where none is known).

    `given` is what the config says; it is taken as it is, and noted where the tree says otherwise.
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
    """The YAML at the head of a model card; {} where there is none, or none that can be read."""
    match = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", text, re.S)
    try:
        facts = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return facts if isinstance(facts, dict) else {}

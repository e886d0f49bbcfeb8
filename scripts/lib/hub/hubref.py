"""References to repositories on the hub: `org/name`, `org/name@revision`. Standard library only."""

from dataclasses import dataclass

from lib.formats.merge_references import reference_kind


@dataclass(frozen=True)
class HubRef:
    """A repository on the hub. revision: as the reference names it; None if it names none."""

    repo: str
    revision: str | None = None


def parse(reference: str) -> HubRef | None:
    """The repository that a reference names; None for a directory or a model of the config.

    reference: a single one. lib.formats.merge_references splits `model+adapter` into two.
    """
    if reference_kind(reference) != "hub":
        return None
    repo, _, revision = reference.partition("@")
    return HubRef(repo, revision or None)

"""References to repositories on the hub: `org/name`, `org/name@revision`. Pure standard library."""

from dataclasses import dataclass

from lib.formats.merge_references import reference_kind


@dataclass(frozen=True)
class HubRef:
    """A repository on the hub; `revision` is None where the reference names none."""

    repo: str
    revision: str | None = None


def parse(reference: str) -> HubRef | None:
    """The repository that `reference` names; None for a directory or a model of the config.

    A LoRA adapter is a reference of its own: lib.formats.merge_references takes `base+adapter` apart.
    """
    if reference_kind(reference) != "hub":
        return None
    repo, _, revision = reference.partition("@")
    return HubRef(repo, revision or None)

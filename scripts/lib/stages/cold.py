"""Cooling: the bytes of a finished quant are deleted here once another place has them."""

import os
from collections.abc import Iterable
from typing import Any

from lib.record import cold
from lib.record.artifact import Artifact
from lib.stages.stage import Memory, Stage, Time
from lib.store.store import VARIABLE

KIND = "quants"  # in the config's `reclaim`


class CoolStage(Stage):
    """Note what a file was and where it is, and delete it here."""

    rule = cold.RULE
    memory = Memory(1000)
    time = Time(10, 20)  # it may upload
    typical = 100_000
    priority = 2  # it frees room


STAGES = (CoolStage(),)


def has_store() -> bool:
    """Whether a store is named, which may have what is deleted here."""
    return bool(os.environ.get(VARIABLE, "").strip())


def nowhere(config: Any) -> list[str]:
    """The line that says that nothing is deleted, since no place has it; none where one may."""
    if KIND not in config.reclaim or has_store():
        return []
    text = f"reclaim: {KIND}: no store has them ({VARIABLE} is not set), so a build deletes none"
    published = any(model.publish and model.publish.gguf for model in config.models.values())
    more = "; `snakemake publish` does, one after the other" if published else ""
    return [f"{text}{more}."]


def declare(
    shared: Any, name: str, forms: Iterable[list[Artifact]], made: Iterable[Artifact]
) -> list[list[Artifact]]:
    """The notes of each form. A note waits for all that is made from its file.

    forms: of each its quant, then its labelled copy and its shards. made: all that the model has.
    Where no store is named, and the hub did not have it, a note is made on demand only.
    """
    readers: dict[Artifact, dict[str, Artifact]] = {}
    for reader in made:
        for up in reader.inputs.values():
            readers.setdefault(up, {})[f"after {reader.path}"] = reader
    asked, store = KIND in shared.config.reclaim, has_store()

    def note(finished: Artifact) -> Artifact:
        return Artifact(
            cold.note_of(finished.path),
            cold.RULE,
            name,
            {"store": shared.config.store},
            inputs={cold.MADE: finished},
            uses=readers.get(finished, {}),
            on_demand=not (asked and (store or cold.noted_on_hub(finished.path))),
        )

    return [[note(finished) for finished in form] for form in forms]

"""The hub references that a config needs locked. `config` is a lib.config.schema.Config."""

from collections.abc import Iterable
from typing import Any

from lib.hub.hubref import parse
from lib.hub.lock import HubSource


def leaves(config: Any, names: Iterable[str]) -> list[tuple[str, bool]]:
    """The models from outside that some models and studies of the config are made from, each once.

    names: of models and studies of the config. Returns [(directory or hub reference, whether
    pickles are allowed)].
    """
    found: list[tuple[str, bool]] = []
    todo = list(names)
    for name in todo:  # which grows meanwhile
        model = config.entries[name]
        for part in model.parts():
            if part not in config.models:
                found.append((part, model.allow_pickle))
            elif part not in todo:
                todo.append(part)
    return list(dict.fromkeys(found))


def beside(config: Any, names: Iterable[str]) -> list[tuple[str, bool]]:
    """As `leaves`, of what these models' sections name besides (LoRA adapters, a base)."""
    named = [ref for name in names for ref in config.entries[name].references()]
    of_models = leaves(config, [ref for ref in named if ref in config.models])
    return [*of_models, *((ref, False) for ref in named if ref not in config.models)]


def hub_sources(config: Any, names: Iterable[str] | None = None) -> list[HubSource]:
    """All repositories of the hub that some models and their corpora come from, each once.

    names: models and studies of the config; None for all.
    """
    names = list(config.entries if names is None else names)
    sources = [*leaves(config, names), *beside(config, names)]
    found = [HubSource(ref, allow_pickle=pickle) for ref, pickle in sources if parse(ref)]
    used = set().union(*(config.entries[name].corpora() for name in names))
    corpora = (corpus for name, corpus in config.corpora.items() if name in used and corpus.hub)
    found += [HubSource(corpus.reference(), "dataset", corpus.file) for corpus in corpora]
    return list(dict.fromkeys(found))

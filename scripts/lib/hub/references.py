"""Which references to the hub a config needs locked. Imported by the Snakefile."""

from collections.abc import Iterable
from typing import Any

from lib.formats.merge_references import merge_references
from lib.hub.hubref import parse
from lib.hub.lock import Wanted


def parts(model: Any) -> list[str]:
    """What a model of the config is made from: its source, or all that its merge names."""
    if model.merge is None:
        return [model.source]
    found = (part for ref in merge_references(model.merge) for part in ref.parts)
    return list(dict.fromkeys(found))


def corpora(model: Any) -> set[str]:
    """The corpora that a model's sections name."""
    imatrix = model.gguf and not model.own_imatrix and model.gguf.imatrix
    sections = [imatrix, model.evaluate, model.exl2]
    return {section.corpus for section in sections if section}


def leaves(config: Any, names: Iterable[str]) -> list[tuple[str, bool]]:
    """The leaves of these models' trees, each once: (directory or hub id, pickles are allowed)."""
    found: list[tuple[str, bool]] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        model = config.models[name]
        for part in parts(model):
            if part in config.models:
                visit(part)
            else:
                found.append((part, model.allow_pickle))

    for name in names:
        visit(name)
    return list(dict.fromkeys(found))


def hub_sources(config: Any, names: Iterable[str] | None = None) -> list[Wanted]:
    """Every hub reference that these models (None: all) come from, and those of their corpora."""
    names = list(config.models if names is None else names)
    found = [
        Wanted(ref, allow_pickle=pickle) for ref, pickle in leaves(config, names) if parse(ref)
    ]
    used = set().union(*(corpora(config.models[name]) for name in names))
    for name, corpus in config.corpora.items():
        if name in used and corpus.hub:
            found.append(Wanted(corpus.reference(), "dataset", corpus.file))
    return list(dict.fromkeys(found))

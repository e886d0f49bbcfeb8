"""Requests to programs, as JSON files in the directory of the run's state.

Each function `*_file` writes a file and returns its path.
"""

import json
from typing import Any

from lib.errors import plainly
from lib.hub.references import hub_sources
from lib.planning.publishing import manifest, uploads
from lib.record.layout import RUN_STATE
from lib.run.session import Session
from lib.stages.cold import KIND


def config_file(session: Session) -> str:
    """The config as Snakemake has it, with the options of `--config`, for the ask_* programs."""
    return _left("config", session.raw)


def references_file(session: Session) -> str:
    """All hub references of the chosen models, for scripts/hub_lock.py."""
    sources = hub_sources(session.config, session.graph.names)
    return _left("references", [vars(source) for source in sources])


def manifest_file(session: Session) -> str:
    """The manifest of what is published (lib/planning/publishing), for scripts/publish.py."""
    taken = uploads(session.graph) if KIND in session.config.reclaim else ()
    return _left("publish", manifest(session.graph) | {"uploads": list(taken)})


@plainly
def repository_cards(session: Session) -> list[str]:
    """The paths of the stale cards of repositories, made for publishing only, and the plots."""
    cards = (a for a in session.graph if a.rule == "card" and a.on_demand and session.is_stale(a))
    return [path for card in cards for path in (card.path, card.inputs["report"].path)]


@plainly
def notes_of_uploads(session: Session) -> list[str]:
    """The notes of what is uploaded as soon as it is made, and of what goes with it."""
    return [note.path for note in session.cooling.notes()] if session.uploads else []


def _left(name: str, request: Any) -> str:
    path = RUN_STATE / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(request), encoding="utf-8")  # in the order of the config
    return str(path)

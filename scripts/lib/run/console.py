"""The messages on the console: a filter for Snakemake's log, and the summary after a run."""

import logging
import os

from lib.planning.graph import Graph
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.layout import GALLERY, STUDIES
from lib.stages.registry import STAGES
from lib.units import count, human


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of Snakemake's log is shown (a logging filter).

    Steps report what they build themselves, so Snakemake's routine lines would only hide that.
    """
    event = getattr(record, "event", None)
    routine = getattr(event, "value", event) in ("job_started", "job_finished")
    text = str(record.msg)
    # A program that answers a question has said itself what is wrong; its command line explains
    # nothing.
    ended = text.startswith("RuleException") and "CalledProcessError in file" in text
    answered = ended and "rules/answers.smk" in text
    return not (routine or answered or text.startswith("Select jobs to execute"))


def cold_record(path: str) -> recipes.Record | None:
    """The record of a cold artifact; None if it is here, or no place has it."""
    record = None if os.path.lexists(path) else recipes.read(path)
    return record if cold.place_of(path, record) else None


def summary(graph: Graph) -> str:
    """Lines for each model: how many files of weights are there, their size, and the report's page.

    For each study its page. Empty if there are none.
    """
    lines = []
    for name in graph.names:
        forms = [
            artifact
            for artifact in graph.artifacts(name).values()
            if STAGES[artifact.rule].is_weights
        ]
        records = [
            recipes.read(artifact.path) for artifact in forms if os.path.exists(artifact.path)
        ]
        sizes = [record.bytes for record in records if record and not record.is_link]
        is_study = name in graph.config.studies
        page = f"results/{name}/report/quality.html"
        if is_study:
            page = f"results/{STUDIES}/{name}/study.html"
        away = [record for artifact in forms if (record := cold_record(artifact.path))]
        if sizes or away:
            text = f"{count(len(sizes), 'artifact')} of weights, {human(sum(sizes))}"
            text += f"; cold {len(away)}, {human(sum(r.bytes for r in away))}" if away else ""
            lines.append(f"  {name}: {text}")
        elif is_study and os.path.exists(page):
            lines.append(f"  {name}: a study")
        if os.path.exists(page):
            lines.append(f"    {page}")
    if GALLERY.exists():
        lines.append(f"  all models: {GALLERY}")
    return "\n".join(["", "Quantmill: there are now", *lines]) if lines else ""

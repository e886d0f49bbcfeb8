"""What a person reads during a run and when it is over."""

import logging
import os

from lib.planning.graph import Graph
from lib.record import recipe as recipes
from lib.stages.registry import STAGES
from lib.units import count, human


def is_news(record: logging.LogRecord) -> bool:
    """A filter for Snakemake's log: steps say themselves what is built, so its routine lines only hide that."""
    event = getattr(record, "event", None)
    routine = getattr(event, "value", event) in ("job_started", "job_finished")
    text = str(record.msg)
    # A script that answers a question has said itself what is wrong; its command line explains nothing.
    answered = text.startswith("RuleException") and "rules/answers.smk" in text
    return not (routine or answered or text.startswith("Select jobs to execute"))


def summary(graph: Graph) -> str:
    """A few lines: for each model the weights that there are now, and the page to open."""
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
        if sizes:
            lines.append(
                f"  {name}: {count(len(sizes), 'artifact')} of weights, {human(sum(sizes))}"
            )
        page = f"results/{name}/report/quality.html"
        if os.path.exists(page):
            lines.append(f"    {page}")
    return "\n".join(["", "Quantmill: there are now", *lines]) if lines else ""

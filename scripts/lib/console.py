"""What a person reads during a run and when it is over."""

import logging
import os

from lib import recipe as recipes
from lib.graph import Graph


def is_news(record: logging.LogRecord) -> bool:
    """A filter for Snakemake's log: steps say themselves what is built, so its routine lines only hide that."""
    event = getattr(record, "event", None)
    routine = getattr(event, "value", event) in ("job_started", "job_finished")
    text = str(record.msg)
    # A script that answers a question has said itself what is wrong; its command line explains nothing.
    return not routine and not text.startswith("Select jobs to execute") and "rules/answers.smk" not in text


def human(size: float) -> str:
    """1234567 is 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def summary(graph: Graph) -> str:
    """A few lines: for each model its forms, their size, and the page to open."""
    lines = ["", "Quantmill has made:"]
    for name in graph.names:
        made = graph.of(name)
        records = [recipes.read(a.path) for a in made.values() if a.rule in FORMS and there(a.path)]
        records = [record for record in records if record]
        if not made:
            continue
        size = human(sum(record.bytes for record in records))
        lines.append(f"  {name}: {len(records)} files and directories of weights, {size}")
        page = f"results/{name}/report/quality.html"
        if there(page):
            lines.append(f"      quality  {page}")
    return "\n".join(lines)


FORMS = ("merge", "convert", "quantize", "split", "exl2_quantize")


def there(path: str) -> bool:
    return os.path.exists(path)

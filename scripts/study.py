"""Write the table, the plot and the page of a study.

All is made from the wanted recipe, JSON that the plan leaves: {artifact, recipe, inputs}.
recipe.options is {study, candidates: [[id, [[name, value], …]], …], parents: [[id, reference], …],
seed, rounds, kept, choose}; inputs is {role: [path, digest]} (lib/studies/outcome.py).
"""

import argparse
from pathlib import Path

from lib.errors import program
from lib.record.wanted import WantedRecipe
from lib.report import study_page
from lib.studies.outcome import read_outcome, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wanted", type=Path, help="the wanted recipe")
    parser.add_argument("--page", type=Path, required=True, help="jinja2 template of the page")
    parser.add_argument("--page-script", type=Path, required=True, help="the page's JavaScript")
    parser.add_argument("--csv", type=Path, required=True, help="table to write")
    parser.add_argument("--svg", type=Path, required=True, help="plot to write")
    parser.add_argument("--html", type=Path, required=True, help="page to write")
    args = parser.parse_args()
    wanted = WantedRecipe.read(args.wanted)
    measured = {role: path for role, (path, _) in wanted.inputs.items()}
    outcome = read_outcome(wanted.recipe["options"], measured)
    args.csv.write_text(table(outcome), encoding="utf-8")
    study_page.write_plot(outcome, args.svg)
    page = study_page.page(outcome, args.page, args.page_script)
    args.html.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    program(main)

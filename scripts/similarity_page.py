"""Draw a comparison of task vectors as heat maps (SVG), and write its page (HTML).

The page says in its first lines which fine-tunes are nearest, which conflict most, and where. It
loads nothing from elsewhere. The same input gives the same bytes.
"""

import argparse
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lib.errors import UserError, program
from lib.formats.json_file import read_json
from lib.report import heat_maps
from lib.report.pages import render
from lib.report.task_vectors import (
    ALIKE,
    UNRELATED,
    Table,
    decimal,
    findings,
    percent,
    relation,
    short_names,
)

TEMPLATE = Path(__file__).parent / "templates/similarity.html.j2"


def facts(table: Table, notes: dict[str, Any], maps: heat_maps.Maps) -> dict[str, Any]:
    """What the page shows. notes: {base, weights: of the base, left: [sentence]}."""
    names = short_names(table.models)
    compared = table.all[0].weights
    return {
        "base": notes["base"],
        "weights": f"{compared:,}",
        "share": percent(compared / notes["weights"]),
        "left": [f"{note[0].upper()}{note[1:]}." for note in notes["left"]],
        "findings": findings(table),
        "names": names,
        "letters": {name: heat_maps.letter(table, name) for name in table.models},
        "models": [
            {
                "name": fact.name,
                "norm": f"{fact.norm:.4g}",
                "relative": percent(fact.relative),
                "changed": percent(fact.changed),
                "rank": "–" if fact.rank is None else f"{fact.rank:.2g}",
            }
            for fact in table.facts()
        ],
        "pairs": [
            {
                "names": line.pair,
                "cosine": decimal(line.cosine),
                "conflict": percent(line.conflict),
                "both": percent(line.changed_both),
                "relation": relation(line),
                "maps": [Markup(heat_maps.svg(drawn)) for drawn in maps.pairs.get(line.pair, ())],
            }
            for line in table.all
        ],
        "matrices": [Markup(heat_maps.svg(drawn)) for drawn in maps.matrices],
        "scopes": [
            (title, _rows(table, scope))
            for title, scope in (("Kind", "kind"), ("Layer", "layer"))
            if table.scope(scope)
        ],
        "unrelated": UNRELATED,
        "alike": ALIKE,
        "style": Markup(heat_maps.STYLE),
    }


def _rows(table: Table, scope: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(kind or layer, [(cosine, conflict) of each pair])]"""
    return [
        (name, [(decimal(by[x.pair].cosine), percent(by[x.pair].conflict)) for x in table.all])
        for name, by in table.scope(scope).items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="CSV that similarity.py has written")
    parser.add_argument("--model", required=True, help="name of the merge")
    parser.add_argument(
        "--record",
        type=Path,
        required=True,
        help="the table's record, JSON: {notes: {base, weights: of the base, left: [sentence]}}",
    )
    parser.add_argument("--page", type=Path, default=TEMPLATE, help="the page's jinja2 template")
    parser.add_argument("--svg", type=Path, required=True, help="plot to write")
    parser.add_argument("--html", type=Path, required=True, help="page to write")
    args = parser.parse_args()
    table, record = Table.read(args.table), read_json(args.record)
    try:
        notes = record["notes"]
        title = f"{args.model}: task vectors"
        about = f"what {len(table.models)} fine-tunes changed of {notes['base']}"
        maps = heat_maps.draw(table)
        shown = facts(table, notes, maps)
    except (KeyError, TypeError):
        raise UserError(f"{args.record}: is no record of a comparison") from None
    text = render(args.page.read_text(encoding="utf-8"), model=args.model, **shown)
    args.html.write_text(text, encoding="utf-8")
    args.svg.write_text(heat_maps.sheet(title, about, table, maps), encoding="utf-8")


if __name__ == "__main__":
    program(main)

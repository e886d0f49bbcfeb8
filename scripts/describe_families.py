"""Print families.json: how each family is called and shown in reports and cards.

It is a JSON list in the order in which families are shown. Each entry is an object:

    name         the family's key in the config
    title        what people call it
    order        its place in the list, from 0
    phrase       what a card says after the model's name, with the blank before it
    library      the hub's `library_name`
    tags         the hub's tags
    note         a sentence for the report on where its forms run, or ""
    tag          what is put beside the names of its forms in the plot, or ""
    colours      [on light, on dark paper], as #rrggbb
    diamond      whether its marker in the plot is a diamond; else it is a dot
    has_quants   whether any of its forms is quantized
"""

import argparse

from lib.errors import program
from lib.report.looks import Looks
from lib.stages.registry import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    print(Looks.of(FAMILIES.values()).to_json())


if __name__ == "__main__":
    program(main)

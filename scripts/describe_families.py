"""Print families.json: how each family is called and shown in reports and cards.

A list of objects, one a family, in the order of lib/cards/registry.py. lib/report/looks.py reads
it; the fields are told in lib/stages/family.py.
"""

import argparse

from lib.errors import program
from lib.report.looks import Looks
from lib.stages.registry import FAMILIES


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(Looks.of(FAMILIES.values()).to_json())


if __name__ == "__main__":
    program(main)

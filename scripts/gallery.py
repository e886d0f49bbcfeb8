"""Write the gallery, results/index.html: a page of all models of the config, as far as measured.

It has a small plot, the sizes and the best form for usual sizes of memory of each model, by the
tables of their reports (results/MODEL/report/quality.csv), with links to report and card.
"""

from lib.errors import program
from lib.record.layout import GALLERY
from lib.run.answers import open_session, parser
from lib.run.lifecycle import write_gallery


def main() -> None:
    write_gallery(open_session(parser(__doc__).parse_args().config))
    print(GALLERY)


if __name__ == "__main__":
    program(main)

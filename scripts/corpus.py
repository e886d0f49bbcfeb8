"""Make a corpus from a fetched text: copy it, or write the text of a parquet file's rows.

The text of a row is its column `text`, `content` or `train`, the first of these that is there.
"""

import argparse
import shutil
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.text_columns import TEXT_COLUMNS


def parquet_text(path: Path) -> str:
    """The rows of a parquet file's text column, each with a newline; empty rows are left out.

    Raises UserError if no column has one of the names TEXT_COLUMNS.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    column = next((name for name in TEXT_COLUMNS if name in table.schema_arrow.names), None)
    if column is None:
        names = ", ".join(table.schema_arrow.names)
        raise UserError(f"{path}: no column called {' or '.join(TEXT_COLUMNS)} (it has {names})")
    return "".join(
        f"{row}\n"
        for batch in table.iter_batches(columns=[column])
        for row in batch.column(0).to_pylist()
        if row
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="text file in UTF-8, or parquet file")
    parser.add_argument(
        "--type", required=True, choices=(".txt", ".parquet"), help="the format of TEXT"
    )
    parser.add_argument("--output", type=Path, required=True, help=".txt or .parquet file to write")
    arguments = parser.parse_args()
    if arguments.type == ".parquet" and arguments.output.suffix == ".txt":
        arguments.output.write_text(parquet_text(arguments.text), encoding="utf-8")
    else:
        shutil.copyfile(arguments.text, arguments.output)


if __name__ == "__main__":
    program(main)

"""Make a corpus from a fetched text: a copy, or the text of a parquet file's rows."""

import argparse
import shutil
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.text_columns import TEXT_COLUMNS


def parquet_text(path: Path) -> str:
    """The rows of a parquet file's text column, one after the other.

    Raises UserError where there is no such column.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    column = next((name for name in TEXT_COLUMNS if name in table.schema_arrow.names), None)
    if column is None:
        names = ", ".join(table.schema_arrow.names)
        raise UserError(f"{path}: no column called text or content (it has {names})")
    return "".join(
        f"{row}\n"
        for batch in table.iter_batches(columns=[column])
        for row in batch.column(0).to_pylist()
        if row
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="what fetch_corpus.py has brought")
    parser.add_argument("--type", required=True, choices=(".txt", ".parquet"), help="of TEXT")
    parser.add_argument("--output", type=Path, required=True, help=".txt or .parquet file to write")
    arguments = parser.parse_args()
    if arguments.type == ".parquet" and arguments.output.suffix == ".txt":
        arguments.output.write_text(parquet_text(arguments.text), encoding="utf-8")
    else:
        shutil.copyfile(arguments.text, arguments.output)


if __name__ == "__main__":
    program(main)

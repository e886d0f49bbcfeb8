"""Corpora, .txt and .parquet files: whether they hold text, and what two have in common."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from lib.formats.text_columns import TEXT_COLUMNS

CHUNK = 1 << 16  # characters


def fault(path: Path) -> str | None:
    """Why a .txt or .parquet file holds no text, in words ("is empty"); None if it holds some.

    Reads only as far as the first character that is not white space. Raises OSError if the file
    cannot be read. Without pyarrow, a .parquet file is not checked.
    """
    return _parquet_fault(path) if path.suffix == ".parquet" else _text_fault(path)


def _text_fault(path: Path) -> str | None:
    if not path.stat().st_size:
        return "is empty"
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while part := file.read(CHUNK):
            if part.strip():
                return None
    return "holds nothing but white space"


def _parquet_fault(path: Path) -> str | None:
    """As `fault`. Planning may run without pyarrow; then there is nothing to say."""
    try:
        import pyarrow.parquet
    except ImportError:
        return None
    if not path.stat().st_size:
        return "is empty"
    with path.open("rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            schema = table.schema_arrow
            text = (pyarrow.string(), pyarrow.large_string())
            names = [field.name for field in schema if field.type in text]
            names = [name for name in TEXT_COLUMNS if name in names][:1] or names
            if not names:
                return f"has no column of text (it has {', '.join(schema.names) or 'none at all'})"
            for batch in table.iter_batches(batch_size=1024, columns=names):
                for column in batch.columns:
                    if any(row and row.strip() for row in column.to_pylist()):
                        return None
        except (pyarrow.ArrowException, OSError):
            return "is no parquet file, or a damaged one"
    return f"holds no text: every row of its column {' and '.join(names)} is empty"


# Characters from which a paragraph is counted: what is shorter is common to many texts.
PARAGRAPH = 80


def calibration_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --calibration to an evaluation's command line."""
    parser.add_argument(
        "--calibration",
        type=Path,
        action="append",
        default=[],
        help="a text with which the form was calibrated, .txt or .parquet; more than once for more",
    )


def shared(path: Path, others: Iterable[Path]) -> dict[str, float]:
    """{name of a text: the share of the paragraphs of `path` that are in it, above 0 up to 1}.

    All are .txt or .parquet files. Lines count as paragraphs where more of them are shared. Those
    under PARAGRAPH characters are not counted, nor is white space. Raises OSError.
    """
    found = {}
    for other in others:
        pairs = zip(_parts(path), _parts(other), strict=True)
        share = max(len(mine & its) / max(1, len(mine)) for mine, its in pairs)
        if share:
            found[other.stem] = max(share, found.get(other.stem, 0.0))
    return found


def _parts(path: Path) -> tuple[set[str], set[str]]:
    """The paragraphs and the lines of a text that are long enough to count."""
    text = _text(path)
    cut = re.split(r"\n\s*\n", text), text.splitlines()
    squeezed = ({" ".join(part.split()) for part in parts} for parts in cut)
    paragraphs, lines = ({part for part in parts if len(part) >= PARAGRAPH} for parts in squeezed)
    return paragraphs, lines


def _text(path: Path) -> str:
    """All of a text; of a .parquet file the rows, one after the other."""
    if path.suffix != ".parquet":
        return path.read_text(encoding="utf-8", errors="replace")
    import pandas

    table = pandas.read_parquet(path)
    column = next((name for name in TEXT_COLUMNS if name in table), table.columns[0])
    return "\n".join(table[column].dropna().astype(str))

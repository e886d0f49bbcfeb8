"""Corpora, .txt and .parquet files: whether they hold text, and what two have in common."""

import re
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


def shared_paragraphs(path: Path, other: Path) -> float:
    """The share of a text's paragraphs that are in another text too: 0 to 1.

    Both are .txt or .parquet files. A text without empty lines has its lines for paragraphs. Those
    under PARAGRAPH characters are not counted, nor is white space. Raises OSError.
    """
    found = _paragraphs(path)
    return len(found & _paragraphs(other)) / len(found) if found else 0.0


def _paragraphs(path: Path) -> set[str]:
    if path.suffix == ".parquet":
        import pandas

        table = pandas.read_parquet(path)
        column = next((name for name in TEXT_COLUMNS if name in table), table.columns[0])
        texts = table[column].dropna().astype(str).tolist()
    else:
        texts = [path.read_text(encoding="utf-8", errors="replace")]
    parts = [part for text in texts for part in re.split(r"\n\s*\n", text)]
    if len(parts) == 1:
        parts = parts[0].splitlines()
    squeezed = (" ".join(part.split()) for part in parts)
    return {part for part in squeezed if len(part) >= PARAGRAPH}

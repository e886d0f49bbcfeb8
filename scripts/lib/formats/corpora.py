"""Checks that a corpus, a .txt or .parquet file, holds text."""

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

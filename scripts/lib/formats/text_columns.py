"""The columns of a parquet file that may hold a corpus. The first one that exists is used."""

TEXT_COLUMNS = ("text", "content", "train")

"""The columns of a parquet file that are taken for text, the first that is there."""

TEXT_COLUMNS = ("text", "content", "train")

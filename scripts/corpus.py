"""Make a corpus: a copy of the user's file, a download, or the text of a parquet file's rows."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from lib.contents import sha256_of

TEXT_COLUMNS = ("text", "content", "train")


def parquet_text(path: Path) -> str:
    """The rows of a parquet file's text column, one after the other. SystemExit where there is none."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    column = next((name for name in TEXT_COLUMNS if name in table.schema_arrow.names), None)
    if column is None:
        names = ", ".join(table.schema_arrow.names)
        sys.exit(f"{path}: no column called text or content (it has {names})")
    return "".join(
        f"{row}\n"
        for batch in table.iter_batches(columns=[column])
        for row in batch.column(0).to_pylist()
        if row
    )


def fetched(arguments: argparse.Namespace) -> Path:
    """The file, downloaded into the user's cache where it is not on this machine. SystemExit where that fails."""
    if arguments.path:
        return arguments.path
    place = arguments.output.with_name("fetched")
    options = ["--output", str(place)]
    if arguments.url:
        options += [arguments.url, "--sha256", arguments.sha256]
    else:
        options += [arguments.hub, "--kind", "dataset", "--file", arguments.file]
    script = str(Path(__file__).with_name("hub_fetch.py"))
    if subprocess.run([sys.executable, script, *options]).returncode:
        sys.exit(1)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--path", type=Path, help="a file on this machine")
    origin.add_argument("--url", help="where to download it; with --sha256")
    origin.add_argument(
        "--hub", help="a dataset, org/name[@revision], as the lock has it; with --file"
    )
    parser.add_argument("--sha256")
    parser.add_argument("--file", help="the file in the dataset")
    parser.add_argument("--recipe", type=Path, required=True, help="the wanted recipe")
    parser.add_argument("--output", type=Path, required=True, help=".txt or .parquet file to write")
    arguments = parser.parse_args()
    recipe = json.loads(arguments.recipe.read_text())["recipe"]
    source = fetched(arguments)
    for identity in recipe["sources"].values():
        if sha256_of(source) != identity["sha256"]:
            sys.exit(f"{source}: changed while this run was under way; run the same command again")
    if recipe["options"]["from"] == ".parquet" and recipe["options"]["to"] == ".txt":
        arguments.output.write_text(parquet_text(source), encoding="utf-8")
    else:
        shutil.copyfile(source, arguments.output)


if __name__ == "__main__":
    main()

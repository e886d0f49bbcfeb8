"""Copy a finished GGUF file with other header fields; its tensors are copied byte for byte.

gguf's own tool does the copying (gguf/scripts/gguf_new_metadata.py). This program turns the
config's settings into its arguments.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys
from gguf.scripts.gguf_new_metadata import (
    MetadataDetails,
    copy_with_new_metadata,
    get_field_data,
)

from lib.errors import UserError, program

# Without these, or with others, the file does not load or its tensors are not found.
FIXED = (Keys.General.ARCHITECTURE, Keys.General.ALIGNMENT, Keys.General.FILE_TYPE)
# The bounds of a GGUF integer that nothing says the type of.
INTEGERS = (
    (GGUFValueType.UINT32, 0, 2**32 - 1),
    (GGUFValueType.INT32, -(2**31), -1),
    (GGUFValueType.UINT64, 0, 2**64 - 1),
    (GGUFValueType.INT64, -(2**63), -1),
)


def details(key: str, value: Any, old: Any) -> MetadataDetails:
    """The field as gguf's tool takes it.

    old: the field that the file has, or None; the new one gets its type. Raises UserError for a
    value of another type, and for one that GGUF has no type for.
    """
    items = value if isinstance(value, list) else [value]
    kinds = {bool if isinstance(item, bool) else type(item) for item in items}
    if len(kinds) != 1 or not kinds <= {str, bool, int, float}:
        raise UserError(f"{key}: {value!r} is neither text, a number, a boolean nor a list of one")
    (kind,) = kinds
    is_list = isinstance(value, list)
    if old and is_list != (old.types[0] == GGUFValueType.ARRAY):
        raise UserError(f"{key}: the file holds {'one value' if is_list else 'a list'} there")
    was = old.types[-1] if old else None
    if kind is int and was in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64):
        kind, items = float, list(map(float, items))
    if kind is str:
        found = GGUFValueType.STRING
    elif kind is bool:
        found = GGUFValueType.BOOL
    elif kind is float:
        if not all(map(math.isfinite, items)):
            raise UserError(f"{key}: {value!r} is not finite")
        found = was if was == GGUFValueType.FLOAT64 else GGUFValueType.FLOAT32
    else:
        fits = [t for t, low, high in INTEGERS if all(low <= item <= high for item in items)]
        if not fits:
            raise UserError(f"{key}: {value!r} does not fit a 64-bit integer")
        found = was if was in [t for t, _, _ in INTEGERS] else fits[0]
    if old and found != was:
        raise UserError(f"{key}: the file holds {was.name.lower()} there, not {kind.__name__}")
    if is_list:
        return MetadataDetails(GGUFValueType.ARRAY, items, sub_type=found)
    return MetadataDetails(found, items[0])


def apply(source: Path, output: Path, fields: dict[str, Any]) -> None:
    """Copy `source` to `output` with these fields, {key: value}; None removes a field.

    Raises UserError for a field that cannot be set and for a file that is no GGUF; OSError.
    """
    try:
        reader = GGUFReader(source, "r")
    except ValueError as error:
        raise UserError(str(error)) from None
    if wrong := sorted(set(fields) & set(FIXED)):
        raise UserError(f"{wrong[0]}: belongs to the tensors and is not to be changed")
    removed = [key for key, value in fields.items() if value is None]
    new = {
        key: details(key, value, reader.get_field(key))
        for key, value in sorted(fields.items())
        if value is not None
    }
    architecture = get_field_data(reader, Keys.General.ARCHITECTURE)
    writer = GGUFWriter(output, arch=architecture, endianess=reader.endianess)
    if alignment := get_field_data(reader, Keys.General.ALIGNMENT):
        writer.data_alignment = alignment
    copy_with_new_metadata(reader, writer, new, removed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="GGUF file")
    parser.add_argument("output", type=Path, help="GGUF file to write")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=TEXT", help="a field; repeatable"
    )
    parser.add_argument(
        "--json",
        type=json.loads,
        default={},
        help="fields as a JSON object, {KEY: value}; null removes one",
    )
    args = parser.parse_args()
    if wrong := [pair for pair in args.set if "=" not in pair]:
        raise UserError(f"--set {wrong[0]}: write KEY=TEXT")
    fields = args.json | dict(pair.split("=", 1) for pair in args.set)
    try:
        apply(args.source, args.output, fields)
    except UserError as error:
        raise UserError(f"{args.source}: {error}") from None


if __name__ == "__main__":
    program(main)

"""Check that a GGUF file has the types that its mix says, and is no larger than was asked for."""

import argparse
import json
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.gguf_file import GgufFile, read_gguf
from lib.mixes.files import read_mix


def check(file: GgufFile, mix: dict[str, str], budget: int | None) -> None:
    """Raises UserError for the first difference. budget: bytes, at most; None: no limit."""
    stored = {tensor.name: tensor.type_name.lower() for tensor in file.tensors}
    for name, kind in mix.items():
        if stored.get(name) != kind:
            raise UserError(f"{name} is {stored.get(name, 'not there')}, and the mix says {kind}")
    size = file.path.stat().st_size
    if budget is not None and size > budget:
        raise UserError(f"it has {size:,} bytes, and at most {budget:,} were asked for")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("--mix", type=Path, required=True, help="a line NAME=TYPE a tensor")
    parser.add_argument("--record", type=Path, help="the mix's record; its notes say the budget")
    args = parser.parse_args()
    notes = json.loads(args.record.read_text(encoding="utf-8"))["notes"] if args.record else {}
    try:
        check(read_gguf(args.model), mix := read_mix(args.mix), notes.get("budget"))
    except UserError as error:
        raise UserError(f"{args.model}: {error}") from None
    print(f"{args.model}: {len(mix)} tensors as in {args.mix}")


if __name__ == "__main__":
    program(main)

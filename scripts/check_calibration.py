"""Check that a calibration text has as many tokens as exllamav2's converter will read.

The converter (0.3.2) says so only when it comes to them, in words of torch. To be run in
resources/environments/exllamav2.
"""

import argparse
from pathlib import Path

from lib.errors import UserError, program


def tokens_in(model: Path, text: Path, most: int) -> int:
    """Tokens of a parquet text's rows by a model's tokenizer; counted to `most`.

    -1 if the model has no tokenizer.json. Raises UserError if there is no text.
    """
    import pandas  # as the converter reads it
    from tokenizers import Tokenizer

    file, count = model / "tokenizer.json", 0
    if not text.is_file():
        raise UserError(f"{text}: there is no such file")
    if not file.is_file():
        return -1
    tokenizer = Tokenizer.from_file(str(file))
    for row in pandas.read_parquet(text).itertuples(index=False):
        words = " ".join(map(str, row))
        count += len(tokenizer.encode(words, add_special_tokens=False).ids)
        if count >= most:
            break
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("--calibration", type=Path, help="parquet text; without it all is well")
    parser.add_argument("--rows", type=int, required=True, help="that are read")
    parser.add_argument("--length", type=int, required=True, help="tokens of a row")
    args = parser.parse_args()
    needed = args.rows * args.length
    if args.calibration is None:
        return
    found = tokens_in(args.model, args.calibration, needed)
    if 0 <= found < needed:
        raise UserError(
            f"{args.calibration}: it has {found:,} tokens, and {args.rows} rows of {args.length} "
            f"need {needed:,}: name a longer text, or fewer or shorter rows"
        )


if __name__ == "__main__":
    program(main)

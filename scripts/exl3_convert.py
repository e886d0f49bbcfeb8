"""Quantize a model to EXL3 with exllamav3's own converter. To be run in its environment.

A resumed job keeps the options of the old one, and the converter exits with status 0 on many errors
(seen in 1.6.5). So a work directory belongs to one recipe, and this program looks for the file that
is written last; check_exl3.py checks the rest. exllamav3 has no measurement that conversions share.
"""

import argparse
import json
import runpy
import shutil
import sys
import traceback
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.json_file import read_json
from model_view import make_view

DIGEST = "recipe-digest"
TEXT = "calibration.safetensors"
LAST = "quantization_config.json"  # that the converter writes


def open_work(work: Path, digest: str) -> bool:
    """Make the directory `work` ready for the recipe `digest`; whether a job in it can be resumed.

    Only an interrupted job of the same recipe can be. Anything else in the directory is deleted.
    """
    try:
        same = (work / DIGEST).read_text(encoding="utf-8") == digest
        # Missing for a moment while one checkpoint takes the place of the other.
        for name in ("args.json", "ckpt/job.json"):
            json.loads((work / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        (work / DIGEST).write_text(digest, encoding="utf-8")
    shutil.rmtree(work / "model", ignore_errors=True)
    return same


def write_rows(text: Path, model: Path, rows: int, length: int, output: Path) -> int:
    """Write at most `rows` rows of `length` tokens of a text for the converter; how many it has.

    They follow each other from the beginning of the text. Each begins with BOS if this tokenizer's
    texts do. Raises UserError if there is not even one.
    """
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bos = read_json(model / "config.json").get("bos_token_id")
    first = [token for token in tokenizer.encode("").ids if token == bos]
    words = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    width = length - len(first)
    if not (count := min(rows, len(words) // width)):
        raise UserError(f"{text}: it has {len(words)} tokens, too few for one row of {length}")
    found = [first + words[at * width : (at + 1) * width] for at in range(count)]
    save_file({"input_ids": np.array(found, dtype=np.int64)}, output)
    print(f"{count} rows of {length} tokens", flush=True)
    return count


def convert(arguments: list[str]) -> None:
    """Run the converter with these arguments. Raises UserError for what it raises."""
    sys.argv = ["convert_model", *arguments]
    try:
        runpy.run_module("exllamav3.conversion.convert_model", run_name="__main__")
    except (AssertionError, ValueError, RuntimeError, OSError) as error:
        traceback.print_exc()
        raise UserError(f"exllamav3's converter failed: {error or repr(error)}") from None
    except SystemExit as error:
        raise UserError(f"exllamav3's converter ended with status {error.code}") from None


def run(args: argparse.Namespace) -> None:
    """Quantize. Raises UserError, OSError."""
    work, view, count = args.work, args.work / "model", args.rows
    if args.output.is_dir() and any(args.output.iterdir()):
        raise UserError(f"{args.output}: not empty; the converter would write between its files")
    going_on = open_work(work, args.recipe_digest)
    make_view(args.model, view)
    if not (view / "tokenizer.json").is_file():
        raise UserError(f"{args.model}: no tokenizer.json in it, the only one that exllamav3 reads")
    text = []
    if args.calibration:
        count = write_rows(args.calibration, view, args.rows, args.length, work / TEXT)
        text = ["--cal_data", str(work / TEXT)]
    print(f"exl3_convert: {'going on with the interrupted job' if going_on else 'a new job'}")
    asked = {
        "--in_dir": view,
        "--out_dir": args.output,
        "--work_dir": work,
        "--bits": args.bits,
        "--head_bits": args.head_bits,
        "--shard_size": args.shard_size,
        "--cal_rows": count,
        "--cal_cols": args.length,
        "--checkpoint_interval": args.checkpoint_seconds,
    }
    words = [str(word) for pair in asked.items() for word in pair]
    convert([*words, *text, *(["--resume"] if going_on else [])])
    if not (args.output / LAST).is_file():
        raise UserError(f"{args.output}: exllamav3's converter did not finish; see above")
    shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model directory: safetensors, tokenizer.json")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument(
        "--work", type=Path, required=True, help="work directory that no other step uses"
    )
    parser.add_argument(
        "--recipe-digest",
        required=True,
        help="any text that names the recipe; an interrupted job of the same is resumed",
    )
    parser.add_argument("--bits", type=float, required=True, help="bits per weight, 1 to 8")
    parser.add_argument(
        "--head-bits", type=int, required=True, help="bits of the output layer, 1 to 8, or 16"
    )
    parser.add_argument(
        "--calibration", type=Path, help="calibration text, UTF-8 (default: exllamav3's own set)"
    )
    parser.add_argument("--rows", type=int, required=True, help="calibration rows, at most")
    parser.add_argument("--length", type=int, required=True, help="tokens in a calibration row")
    parser.add_argument("--shard-size", type=int, default=8192, help="largest shard in MiB")
    parser.add_argument(
        "--checkpoint-seconds", type=int, default=120, help="between two checkpoints, at least"
    )
    run(parser.parse_args())


if __name__ == "__main__":
    program(main)

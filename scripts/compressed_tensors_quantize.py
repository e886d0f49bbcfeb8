"""Quantize a model directory by a scheme of compressed-tensors that needs no data.

llmcompressor does it, tensor by tensor; what it leaves as it is, lib/formats/compressed_tensors.py
says. The result is a complete directory: config.json with quantization_config, the weights in as
many files, tokenizer and chat template. To be run in resources/environments/llmcompressor.
"""

import argparse
import tempfile
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.compressed_tensors import CALIBRATED, SCHEMES, fault, kept, shapes_in
from model_view import make_view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model directory, 16 or 32 bits a weight")
    parser.add_argument(
        "--scheme", required=True, choices=[name for name in SCHEMES if name not in CALIBRATED]
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        view = Path(scratch, "model")
        shapes = shapes_in(make_view(args.model, view))
        if wrong := fault(args.scheme, shapes):
            raise UserError(f"{args.model}: {wrong}")
        from llmcompressor import model_free_ptq

        model_free_ptq(
            model_stub=view,
            save_directory=args.output,
            scheme=args.scheme,
            ignore=kept(shapes),
            device="cpu",
        )


if __name__ == "__main__":
    program(main)

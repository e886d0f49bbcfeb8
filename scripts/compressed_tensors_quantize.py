"""Quantize a model directory by a scheme of compressed-tensors that needs no data.

llmcompressor does it, tensor by tensor; what it leaves as it is, lib/formats/compressed_tensors.py
says. The result is a complete directory: config.json with quantization_config, the weights in as
many files, tokenizer and chat template. To be run in resources/environments/llmcompressor.
"""

import argparse
import tempfile
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.compressed_tensors import SCHEMES, fault, kept
from lib.formats.safetensors import read_header
from model_view import make_view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model directory, 16 or 32 bits a weight")
    parser.add_argument("--scheme", required=True, choices=SCHEMES)
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = make_view(args.model, Path(scratch, "model"))
        shapes = {
            name: tensor.shape
            for file in files
            if file.suffix == ".safetensors"
            for name, tensor in read_header(file).tensors.items()
        }
        if wrong := fault(args.scheme, shapes):
            raise UserError(f"{args.model}: {wrong}")
        from llmcompressor import model_free_ptq

        model_free_ptq(
            model_stub=files[0].parent,
            save_directory=args.output,
            scheme=args.scheme,
            ignore=kept(shapes),
            device="cpu",
        )


if __name__ == "__main__":
    program(main)

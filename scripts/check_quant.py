"""Check that a quant holds the tensors of the GGUF that it was made from, whole and near to it.

llama-quantize may end well although the disk was full, the file system lost a part, or the file is
not what was asked for. So:

- names and shapes are those of the unquantized file (of the layers that are kept), and the file
  ends with its last tensor;
- no scale of a block is NaN or infinite, in any tensor;
- of each tensor eight blocks, from the first to the last, point where the unquantized ones do
  (cosine). Blocks that were never written, or are another model's, do not: they have 0.00 ± 0.06.
  The lowest of all types, with and without an imatrix, was 0.39 (TQ1_0; of others 0.75, IQ2_XXS).

A few seconds for what lies in the page cache. It cannot tell quants of one type by their imatrix.
"""

import argparse
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from lib.errors import UserError, program
from lib.formats.gguf_file import GgufFile, Tensor, read_gguf
from lib.formats.gguf_values import check_scales

BLOCKS, WIDTH = 8, 256  # of a tensor that are compared, and the weights of each
LEAST = 0.1  # cosine of a block
ALIGNMENT = 32  # bytes to which llama.cpp fills up a file by default


def check(quant: GgufFile, whole: GgufFile, pruned: Collection[int]) -> None:
    """Raises UserError for the first fault. pruned: layers of `whole` that the quant leaves out."""
    origin = origins(whole, pruned)
    check_tensors(quant, origin)
    check_scales(quant)
    for tensor in quant.tensors:
        near = min(cosines(quant, tensor, whole, origin[tensor.name]), default=1)
        if near < LEAST:
            raise UserError(
                f"its tensor {tensor.name} is not that of {whole.path} "
                f"(cosine of a block: {near:.2f})"
            )


def origins(whole: GgufFile, pruned: Collection[int]) -> dict[str, Tensor]:
    """{name in a quant: tensor of `whole`}: layers that are left are numbered anew."""
    found = {}
    for tensor in whole.tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        number = int(layer[1]) if layer else -1
        if number in pruned:
            continue
        left = number - sum(gone < number for gone in pruned)
        found[tensor.name.replace(f"blk.{number}.", f"blk.{left}.", 1)] = tensor
    return found


def check_tensors(quant: GgufFile, origin: dict[str, Tensor]) -> None:
    """Raises UserError if names, shapes or the file's size are not what they should be."""
    shapes = {tensor.name: tensor.shape for tensor in quant.tensors}
    for name in sorted(shapes.keys() ^ origin.keys()):
        raise UserError(f"it has {'a' if name in shapes else 'no'} tensor {name}")
    for name, shape in shapes.items():
        if shape != origin[name].shape:
            raise UserError(f"its tensor {name} is {shape}, and was {origin[name].shape}")
    end = max(tensor.offset + tensor.size for tensor in quant.tensors)
    alignment = quant.metadata.get("general.alignment", ALIGNMENT)
    if (size := quant.path.stat().st_size) >= end + alignment:
        raise UserError(f"it has {size:,} bytes, and its last tensor ends at {end:,}")


def cosines(quant: GgufFile, tensor: Tensor, whole: GgufFile, origin: Tensor) -> Iterator[float]:
    """Of blocks from the first to the last of a tensor; none of a type that gguf cannot read."""
    width = min(WIDTH, tensor.elements)
    last = tensor.elements // width - 1
    for number in sorted({round(last * part / (BLOCKS - 1)) for part in range(BLOCKS)}):
        try:
            made, was = block(quant, tensor, number, width), block(whole, origin, number, width)
        except NotImplementedError:
            return
        norm = np.linalg.norm(was)
        if norm > 0:
            yield float(made @ was / (np.linalg.norm(made) * norm or 1))


def block(file: GgufFile, tensor: Tensor, number: int, width: int) -> np.ndarray:
    """The weights of a tensor from number x width on: (width,), float32. Raises OSError."""
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
    per_block = width // elements * size
    data = np.fromfile(file.path, np.uint8, per_block, offset=tensor.offset + number * per_block)
    return dequantize(data, GGMLQuantizationType(tensor.type)).ravel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("quant", type=Path, help="the GGUF file")
    parser.add_argument("--of", type=Path, required=True, help="the file that it was made from")
    parser.add_argument("--pruned", type=int, nargs="*", default=[], help="layers it leaves out")
    args = parser.parse_args()
    try:
        check(quant := read_gguf(args.quant), read_gguf(args.of), args.pruned)
    except UserError as error:
        said = str(error).removeprefix(f"{args.quant}: ")
        raise UserError(f"{args.quant.name}: {said}") from None
    print(f"{args.quant}: {len(quant.tensors)} tensors, as in {args.of}")


if __name__ == "__main__":
    program(main)

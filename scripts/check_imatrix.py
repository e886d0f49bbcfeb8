"""Check that an importance matrix fits a model: names and widths of tensors, coverage, values.

llama-quantize b10605 accepts the matrix of another model silently if the widths match, and
quantizes tensors that the matrix does not name without importances. This check cannot tell apart
two models whose tensors have the same names and widths; the recipe beside the matrix says which one
it was made from.
"""

import argparse
import re
from math import prod
from pathlib import Path

import numpy as np

from lib.errors import UserError, program
from lib.formats.gguf_file import GgufFile, read_gguf
from lib.formats.imatrix_file import ImatrixData, read_imatrix

# Weights that every transformer block multiplies with activations. A matrix lacks one of them
# only if it was made from another model or cut off; of other kinds of tensors (state space,
# routers, …) some are never multiplied, so nothing is demanded of them.
MATMUL = re.compile(
    r"blk\.(\d+)\.(attn_(?:q|k|v|qkv|output)|ffn_(?:up|gate|down)(?:_exps|_shexp)?)\.weight"
)


def check(matrix: ImatrixData, model: GgufFile) -> list[str]:
    """Remarks, a line each, on what is unusual though the matrix can be used.

    Raises UserError for the first fault.
    """
    if not matrix.entries:
        raise UserError("it has no entries")
    shapes = {t.name: t.shape for t in model.tensors}
    remarks = []
    for name, entry in sorted(matrix.entries.items()):
        if name not in shapes:
            raise UserError(f"it has an entry {name}, which the model does not have")
        shape = shapes[name]
        width = shape[0] * prod(shape[2:])
        if len(entry.values) != width:
            raise UserError(
                f"its entry {name} is {len(entry.values)} wide, the model's tensor {width}"
            )
        if not np.isfinite(entry.values).all() or not np.isfinite(entry.counts).all():
            raise UserError(f"its entry {name} holds NaN or Inf")
        if (entry.values < 0).any():
            raise UserError(f"its entry {name} holds negative sums of squares")
        if not (entry.counts > 0).any():
            raise UserError(f"its entry {name} has no data (its count is 0)")
        if (unseen := int((entry.counts <= 0).sum())) > 0:
            remarks.append(f"{name}: {unseen} of {len(entry.counts)} experts saw no token")
    for name in expected_entries(model):
        if name not in matrix.entries:
            raise UserError(f"it has no entry for {name}")
    return remarks


def expected_entries(model: GgufFile) -> list[str]:
    """The names of the model's tensors that every matrix must have, in the file's order."""
    key = model.metadata.get("general.architecture", "") + "."
    blocks = model.metadata.get(key + "block_count", 0)
    # Never run: blocks for multi-token prediction; keys and values of blocks that share them.
    run = blocks - model.metadata.get(key + "nextn_predict_layers", 0)
    own_keys = blocks - model.metadata.get(key + "attention.shared_kv_layers", 0)
    names = []
    for tensor in model.tensors:
        match = MATMUL.fullmatch(tensor.name)
        if match is None or int(match[1]) >= run:
            continue
        if match[2] in ("attn_k", "attn_v") and int(match[1]) >= own_keys:
            continue
        names.append(tensor.name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--imatrix", type=Path, required=True, help="the matrix, .dat or GGUF")
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file it is for")
    parser.add_argument("--called", help="its name in messages; default: its path")
    parser.add_argument(
        "--chunks", type=int, help="number of chunks that was asked for; more are an error"
    )
    args = parser.parse_args()
    called = args.called or args.imatrix
    try:
        matrix = read_imatrix(args.imatrix)
    except UserError as error:
        raise UserError(str(error).replace(str(args.imatrix), str(called))) from None
    model = read_gguf(args.model)
    try:
        remarks = check(matrix, model)
    except UserError as error:
        raise UserError(f"{called}: {error}; not a matrix of {args.model}") from None
    if matrix.chunks < 1:
        raise UserError(f"{called}: computed on no complete chunk of text")
    if args.chunks is not None and matrix.chunks > args.chunks:
        asked = f"{args.chunks} were asked for"
        raise UserError(f"{called}: computed on {matrix.chunks} chunks, {asked}")
    if args.chunks is not None and matrix.chunks < args.chunks:
        remarks.append(f"the text has only {matrix.chunks} chunks, {args.chunks} were asked for")
    for remark in remarks:
        print(f"check_imatrix: {remark}")
    print(f"{called}: {len(matrix.entries)} entries from {matrix.chunks} chunks")


if __name__ == "__main__":
    program(main)

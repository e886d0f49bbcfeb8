"""Check that an importance matrix fits a model: names and widths of tensors, coverage, values.

llama-quantize b10605 accepts the matrix of another model silently if the widths match, and
quantizes tensors that the matrix does not name without importances. This check cannot tell apart
two models whose tensors have the same names and widths; the recipe beside the matrix says which one
it was made from.

Of a mixture of experts it names those that the text never reached, or hardly: llama-quantize
quantizes the former as if all of their weights mattered alike, and tells nobody.
"""

import argparse
import json
import re
from itertools import groupby
from math import ceil, prod
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
# The mean of so many squares is known to a quarter, if what is squared is normal: sqrt(2 / 32).
ENOUGH = 32
# What n tokens never reached has a share of at most 3/n, 19 times in 20.
AT_MOST = 3


def check(matrix: ImatrixData, model: GgufFile) -> None:
    """Raise UserError for the first fault."""
    if not matrix.entries:
        raise UserError("it has no entries")
    shapes = {t.name: t.shape for t in model.tensors}
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
    for name in expected_entries(model):
        if name not in matrix.entries:
            raise UserError(f"it has no entry for {name}")


def expert_counts(matrix: ImatrixData, model: GgufFile) -> dict[int, np.ndarray]:
    """{layer: how many tokens each expert got, (experts,)}; empty for a dense model.

    The .dat has no counts: there it is 0 for an expert that got none, whose values llama-imatrix
    sets to 1, and infinite for all others.
    """
    found: dict[int, np.ndarray] = {}
    for tensor in model.tensors:
        match, entry = MATMUL.fullmatch(tensor.name), matrix.entries.get(tensor.name)
        if match is None or entry is None or not match[2].endswith("_exps"):
            continue
        counts, experts = entry.counts, tensor.shape[2]
        if len(counts) != experts:
            counts = np.where(np.ptp(entry.values.reshape(experts, -1), axis=1), np.inf, 0)
        found.setdefault(int(match[1]), counts)
    return found


def unreached(matrix: ImatrixData, model: GgufFile) -> dict | None:
    """What to say of experts that got fewer than ENOUGH tokens; None if there are none.

    {says: a sentence, never, hardly: {layer: experts in words}, chunks: how many would give each of
    them ENOUGH tokens by the shares measured; at least so many, where some were never reached}.
    """
    layers = expert_counts(matrix, model)
    never = {n: np.flatnonzero(counts == 0).tolist() for n, counts in layers.items()}
    hardly = {
        layer: {n: int(count) for n, count in enumerate(counts) if 0 < count < ENOUGH}
        for layer, counts in layers.items()
    }
    unseen, rare = (sum(map(len, found.values())) for found in (never, hardly))
    if not unseen + rare:
        return None
    fewest = [AT_MOST] * bool(unseen) + [min(found.values()) for found in hardly.values() if found]
    times = ENOUGH / min(fewest)
    chunks = ceil(matrix.chunks * times)
    tokens = int(max(entry.counts.max() for entry in matrix.entries.values()))  # chunks in a .dat
    parts = [f"never reached {unseen}"] * bool(unseen)
    parts += [f"gave {rare} fewer than {ENOUGH} tokens"] * bool(rare)
    needed = f"{'at least' if unseen else 'about'} {chunks:,} chunks"
    needed += f" ({ceil(tokens * times):,} tokens)" * (tokens > matrix.chunks)
    says = f"Of {sum(map(len, layers.values()))} experts the text {' and '.join(parts)}. "
    says += f"For {ENOUGH} tokens each it would take {needed} in place of {matrix.chunks:,}."
    return {
        "says": says,
        "never": {layer: spans(found) for layer, found in never.items() if found},
        "hardly": {
            layer: ", ".join(f"{n} ({count})" for n, count in found.items())
            for layer, found in hardly.items()
            if found
        },
        "chunks": chunks,
    }


def spans(numbers: list[int]) -> str:
    """Ascending numbers in words, as "1, 5-7"."""
    groups = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


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


def told(experts: dict) -> str:
    """What `unreached` found, in one line."""
    lists = [
        f"{title}: {'; '.join(f'layer {layer}: {text}' for layer, text in found.items())}."
        for title, found in (("Never", experts["never"]), ("Tokens", experts["hardly"]))
        if found
    ]
    return " ".join([experts["says"], *lists])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--imatrix", type=Path, required=True, help="the matrix, .dat or GGUF")
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file it is for")
    parser.add_argument("--called", help="its name in messages; default: its path")
    parser.add_argument(
        "--chunks", type=int, help="number of chunks that was asked for; more are an error"
    )
    parser.add_argument(
        "--json",
        type=Path,
        help="file to write if there are experts with too few tokens: {experts: {says, never, "
        "hardly, chunks}}",
    )
    args = parser.parse_args()
    called = args.called or args.imatrix
    try:
        matrix = read_imatrix(args.imatrix)
    except UserError as error:
        raise UserError(str(error).replace(str(args.imatrix), str(called))) from None
    model = read_gguf(args.model)
    try:
        check(matrix, model)
    except UserError as error:
        raise UserError(f"{called}: {error}; not a matrix of {args.model}") from None
    if matrix.chunks < 1:
        raise UserError(f"{called}: computed on no complete chunk of text")
    if args.chunks is not None and matrix.chunks > args.chunks:
        asked = f"{args.chunks} were asked for"
        raise UserError(f"{called}: computed on {matrix.chunks} chunks, {asked}")
    if args.chunks is not None and matrix.chunks < args.chunks:
        print(f"the text has only {matrix.chunks} chunks, {args.chunks} were asked for")
    if experts := unreached(matrix, model):
        print(told(experts))
        if args.json:
            args.json.write_text(json.dumps({"experts": experts}))
    print(f"{called}: {len(matrix.entries)} entries from {matrix.chunks} chunks")


if __name__ == "__main__":
    program(main)

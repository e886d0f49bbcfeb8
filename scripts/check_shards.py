"""Check that the shards of a GGUF file have the same tensors and metadata as the whole file.

Reads every byte of both once, in pieces of 16 MiB.
"""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.gguf_file import GgufFile, read_gguf
from lib.formats.same_bytes import same_bytes


def read_shards(directory: Path) -> list[GgufFile]:
    """The headers of all shards in `directory`, in order.

    Raises UserError if a shard is missing or not in its place, and OSError.
    """
    paths = sorted(directory.glob("*.gguf"))
    if not paths:
        raise UserError(f"{directory}: no shards in it")
    for number, path in enumerate(paths, 1):
        if not path.name.endswith(f"-{number:05}-of-{len(paths):05}.gguf"):
            raise UserError(
                f"{path}: expected shard {number} of {len(paths)}, one of each in the directory"
            )
    shards = [read_gguf(path) for path in paths]
    for number, shard in enumerate(shards):
        said = (shard.metadata.get("split.no"), shard.metadata.get("split.count"))
        if said != (number, len(shards)):
            raise UserError(f"{shard.path}: says of itself that it is shard {said[0]} of {said[1]}")
    return shards


def compare(whole: GgufFile, shards: list[GgufFile]) -> None:
    """Raises UserError at the first difference between `whole` and its `shards`."""
    wanted, found = _metadata(whole), {k: v for s in shards for k, v in _metadata(s).items()}
    for key in [*wanted, *found]:
        if wanted.get(key) != found.get(key):
            raise UserError(f"{shards[0].path}: its metadata {key} is not that of {whole.path}")
    parts = [(shard, tensor) for shard in shards for tensor in shard.tensors]
    if len(parts) != len(whole.tensors):
        raise UserError(
            f"{shards[0].path.parent}: {len(parts)} tensors in the shards, "
            f"{len(whole.tensors)} in {whole.path}"
        )
    for tensor, (shard, part) in zip(whole.tensors, parts, strict=True):
        for what in ("name", "type_name", "shape"):
            if getattr(tensor, what) != getattr(part, what):
                raise UserError(
                    f"{shard.path}: tensor {part.name} has {what} {getattr(part, what)}, "
                    f"{getattr(tensor, what)} in {whole.path}"
                )
        if not same_bytes(whole.path, tensor.offset, shard.path, part.offset, tensor.size):
            raise UserError(f"{shard.path}: tensor {part.name} differs from that of {whole.path}")


def _metadata(file: GgufFile) -> dict[str, bytes]:
    return {key: raw for key, raw in file.raw.items() if not key.startswith("split.")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", type=Path, required=True, help="the GGUF file that was split")
    parser.add_argument(
        "--shards", type=Path, required=True, help="directory of its shards, *-00001-of-00002.gguf"
    )
    args = parser.parse_args()
    whole, shards = read_gguf(args.whole), read_shards(args.shards)
    compare(whole, shards)
    print(
        f"{args.shards}: {len(whole.tensors)} tensors in {len(shards)} shards, as in {args.whole}"
    )


if __name__ == "__main__":
    program(main)

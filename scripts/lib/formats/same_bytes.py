"""Whether stretches of two files are equal."""

from pathlib import Path

PIECE = 16 * 2**20  # bytes compared at a time


def same_bytes(path: Path, offset: int, other: Path, other_offset: int, size: int) -> bool:
    """Whether two files have the same `size` bytes, from an offset in each."""
    with path.open("rb") as one, other.open("rb") as two:
        one.seek(offset)
        two.seek(other_offset)
        pieces = (min(PIECE, size - start) for start in range(0, size, PIECE))
        return all(one.read(piece) == two.read(piece) for piece in pieces)

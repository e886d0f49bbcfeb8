"""Digests of files: the sha256 in recipes, records, locks and configs, and git's own hash.

This is a module of its own because step.py, which runs twice for each step, must import quickly.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

LARGE = 64 << 20  # bytes


def sha256_of(path: str | os.PathLike) -> str:
    """sha256 (hex) of a file's bytes. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flushed_digests(paths: Sequence[Path], known: Mapping[Path, str]) -> dict[Path, str]:
    """The sha256 (hex) of each of these files, when the bytes of all are on the disk.

    known: of some files, which are not read. Large ones are read side by side, and while the disk
    writes them. Raises OSError.
    """
    left = [path for path in paths if path not in known]
    if sum(path.stat().st_size for path in paths) < LARGE:
        for path in paths:
            _flush(path)
        return {path: known.get(path) or sha256_of(path) for path in paths}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        flushing = [pool.submit(_flush, path) for path in paths]
        found = dict(zip(left, pool.map(sha256_of, left), strict=True))
        for flushed in flushing:
            flushed.result()
    return {path: known.get(path) or found[path] for path in paths}


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def git_hash(content: bytes) -> str:
    """The hash (hex) of a file in git and on the hub: the sha1 of its blob. content: the file's."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

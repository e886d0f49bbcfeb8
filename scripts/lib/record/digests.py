"""Digests of files: the sha256 in recipes, records, locks and configs, and git's own hash.

This is a module of its own because step.py, which runs twice for each step, must import quickly.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

LARGE = 64 << 20  # bytes


def sha256_of(path: str | os.PathLike) -> str:
    """sha256 (hex) of a file's bytes. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: str | os.PathLike) -> list[int]:
    """What changes when a file is written or replaced: its size, mtime, ctime (ns) and inode."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def flushed_digests(paths: Sequence[Path]) -> list[str]:
    """The sha256 (hex) of each of these files, when the bytes of all are on the disk.

    Large ones are read side by side, and while the disk writes them. Raises OSError.
    """
    if sum(path.stat().st_size for path in paths) < LARGE:
        for path in paths:
            _flush(path)
        return [sha256_of(path) for path in paths]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        flushing = [pool.submit(_flush, path) for path in paths]
        found = list(pool.map(sha256_of, paths))
        for flushed in flushing:
            flushed.result()
    return found


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def git_hash(content: bytes) -> str:
    """The hash (hex) of a file in git and on the hub: the sha1 of its blob. content: the file's."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

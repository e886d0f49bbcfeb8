"""Digests of files: the sha256 that recipes, records, locks and configs have, and git's own.

A module of its own: step.py, which runs twice for each step, imports nothing that takes time.
"""

import hashlib
import os


def sha256_of(path: str | os.PathLike, flush: bool = False) -> str:
    """sha256 (hex) of a file's bytes. OSError if it cannot be read.

    flush: the bytes are on the disk when this returns.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
    return digest


def git_hash(content: bytes) -> str:
    """What git, and so the hub, calls a file with this content (hex): the sha1 of its blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

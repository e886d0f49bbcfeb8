"""Digests of files: the sha256 in recipes, records, locks and configs, and git's own hash.

This is a module of its own because step.py, which runs twice for each step, must import quickly.
"""

import hashlib
import os


def sha256_of(path: str | os.PathLike, flush: bool = False) -> str:
    """sha256 (hex) of a file's bytes. Raises OSError if it cannot be read.

    flush: return only after the bytes are on the disk.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
    return digest


def git_hash(content: bytes) -> str:
    """The hash (hex) of a file in git and on the hub: the sha1 of its blob. content: the file's."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

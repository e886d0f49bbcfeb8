"""Locks of files, and leases, by which the kernel tells whether a file is being written.

Not all file systems have flock(2): Lustre without -o flock, NFS without its daemon.
"""

import errno
import fcntl
import os
import re
from pathlib import Path
from typing import IO

LOCAL = {"btrfs", "ext2", "ext3", "ext4", "tmpfs", "xfs"}
MOUNTS = Path("/proc/self/mountinfo")
NONE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class NoLocks(OSError):
    """The file system has no locks."""


def lock(file: int | IO, wait: bool = False) -> bool:
    """Lock an open file until it is closed; whether that was possible.

    wait: until its holder ends, if another process has it; else False is returned then. Raises
    NoLocks, and OSError.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NONE:
            raise NoLocks(*error.args) from None
        raise
    return True


def hold(path: Path) -> IO | None:
    """Hold a file until the returned file is closed; None if another process holds it.

    Where the file system has no locks every file is returned as held.
    """
    file = path.open("a")
    try:
        if lock(file):
            return file
    except NoLocks:
        return file
    file.close()
    return None


def is_held(path: Path) -> bool:
    """Whether another process holds a file."""
    try:
        file = hold(path)
    except OSError:  # its directory is not there, or has just been removed
        return False
    if file:
        file.close()
    return file is None


def file_system(path: Path) -> str:
    """The type of the file system of a file that is there, as Linux calls it; else empty."""
    place, found = os.path.realpath(path), ("", "")
    for line in _mounts():
        fields, _, kind = line.partition(" - ")
        top = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields.split()[4])
        if os.path.commonpath((top, place)) == top:
            found = max(found, (top, kind.split()[0]), key=lambda mount: len(mount[0]))
    return found[1]


def _mounts() -> list[str]:
    try:
        return MOUNTS.read_text().splitlines()
    except OSError:  # another system
        return []


def is_written(path: Path) -> bool:
    """Whether a process has a file open for writing. False where that is not known.

    Only local file systems of Linux tell, by refusing a lease for readers (fcntl(2)). NFS 4 refuses
    it wherever the server has not handed the file to this client.
    """
    if file_system(path) not in LOCAL:
        return False
    with path.open("rb") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False

"""Where a store keeps its bytes: a directory that its users share, or a bucket.

Names in it are relative, with slashes. What has a name is whole: a file is written under a
temporary name in the same place, flushed, and renamed; an object of a bucket appears when its last
byte is there.

In a directory nothing lies twice where the file system can help it. A clone (FICLONE: XFS, Btrfs,
…) shares blocks until somebody writes; else a hard link is a second name of the same file. Its mode
then takes everybody's right to write, so that an edit in place cannot change what others have
taken; and only a file of one's own is linked, because Linux forbids others
(fs.protected_hardlinks), and Snakemake sets the date of what a step has made.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lib.errors import UserError, shown
from lib.record.digests import sha256_of
from lib.store.entry import Refused

FICLONE = 0x40049409  # linux/fs.h
PIECE = 16 << 20  # bytes of an object that are read at a time
PARTS = "parts"  # files under temporary names
ABANDONED_S = 7 * 86400  # a file in PARTS that nobody writes any more
S3_REQUIREMENTS = "requirements-s3.txt"


class Unreachable(UserError):
    """The store is not there, or cannot be read or written; says why."""


class Found(NamedTuple):
    """A file of a store: its bytes, and when it was written, in seconds since 1970."""

    name: str
    bytes: int
    at: float


class Place(Protocol):
    """What both kinds of places can do. Every call raises Unreachable; Refused for a link."""

    shown: str
    """Its name for people."""

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None if there is none."""

    def write(self, name: str, data: bytes, again: bool) -> None:
        """Write a small file. again: in the place of one that is there, which stays otherwise."""

    def size(self, name: str) -> int | None:
        """The bytes of a file; None if there is none."""

    def put(self, name: str, file: Path, again: bool) -> bool:
        """Keep a local file's bytes, unless so many are there. again: even then.

        Returns whether it was brought.
        """

    def take(self, name: str, to: Path) -> str:
        """Bring a file; how, in words. Raises FileNotFoundError."""

    def sha256(self, name: str) -> str:
        """The sha256 (hex) of a file's bytes. Raises FileNotFoundError."""

    def names(self, folder: str) -> Iterator[Found]:
        """The files below a folder, in no order."""

    def remove(self, name: str, at: float | None = None) -> None:
        """Remove a file, if it is there. at: only if it was not written since, as Found has it."""

    def aside(self, name: str) -> str | None:
        """Have a file under another name, by which it can be removed; None if it is not there.

        A bucket has no such names: it gives the file's own.
        """

    def back(self, aside: str, name: str) -> None:
        """Give a file its name again that was put aside, unless somebody has put another there."""

    def tidy(self) -> None:
        """Remove what killed writers have left."""


def place_of(location: str) -> Place:
    """The place of a store: a directory, or a URL that fsspec knows. Raises Unreachable."""
    if "://" in location:
        return Bucket(location)
    return Directory(Path(location))


def _reaching(call: Callable) -> Callable:
    """Decorate a method of a place: what goes wrong in the store is Unreachable."""

    def reaching(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(self, *args, **kwargs)
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:  # a bucket's libraries have no common class of errors
            raise Unreachable(why(error)) from error

    return reaching


def why(error: Exception) -> str:
    """An error of the operating system or of a bucket's library, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shown(" ".join(str(error).split()))[:200] or type(error).__name__


class Directory:
    """A directory that its users share."""

    def __init__(self, root: Path):
        """Raises Unreachable: a directory that is not there is not made, it may not be mounted."""
        self.root, self.shown = root, str(root)
        try:
            found = os.stat(root)
        except OSError as error:
            raise Unreachable(why(error)) from None
        if not stat.S_ISDIR(found.st_mode):
            raise Unreachable("it is no directory")
        self._mode, self._group = stat.S_IMODE(found.st_mode), found.st_gid
        self._user = os.geteuid()

    @_reaching
    def read(self, name: str) -> bytes | None:
        try:
            with open(self._plain(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            self._insist()
            return None

    @_reaching
    def write(self, name: str, data: bytes, again: bool) -> None:
        part = self._part()
        try:
            with open(part, "xb") as file:
                file.write(data)
            self._finish(part, name, again)
        except FileNotFoundError as error:
            raise Unreachable(why(error)) from None
        finally:
            _unlink(part)

    @_reaching
    def size(self, name: str) -> int | None:
        try:
            return os.stat(self._plain(name)).st_size
        except FileNotFoundError:
            self._insist()
            return None

    @_reaching
    def put(self, name: str, file: Path, again: bool) -> bool:
        path = self.root / name
        again = again or path.is_symlink() or not path.is_file()
        if not again and self.size(name) == file.stat().st_size:
            return False
        part = self._part()
        try:
            if not _clone(file, part) and not self._link_in(file, part):
                shutil.copyfile(file, part)
            self._finish(part, name, True)
        except FileNotFoundError as error:
            raise Unreachable(why(error)) from None
        finally:
            _unlink(part)
        return True

    @_reaching
    def take(self, name: str, to: Path) -> str:
        file = self._plain(name)
        if _clone(file, to):
            return "cloned"
        now = os.stat(file)
        if now.st_uid == self._user:
            try:
                os.link(file, to)
                return "linked"
            except OSError:  # another file system
                _unlink(to)
        shutil.copyfile(file, to)
        return "copied"

    @_reaching
    def sha256(self, name: str) -> str:
        return sha256_of(self._plain(name))

    @_reaching
    def names(self, folder: str) -> Iterator[Found]:
        found = []
        for here, _, files in os.walk(self.root / folder):
            for name in files:
                path = Path(here, name)
                try:
                    now = path.lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(now.st_mode):
                    # A link to what was there before has the file's own, older mtime.
                    at = max(now.st_mtime, now.st_ctime)
                    found.append(Found(path.relative_to(self.root).as_posix(), now.st_size, at))
        return iter(found)

    @_reaching
    def remove(self, name: str, at: float | None = None) -> None:
        if at is None:
            (self.root / name).unlink(missing_ok=True)
        elif aside := self.aside(name):  # so that it is this very file that is judged
            if (self.root / aside).stat().st_mtime > at:
                self.back(aside, name)
            else:
                self.remove(aside)

    @_reaching
    def aside(self, name: str) -> str | None:
        part = self._part()
        try:
            os.rename(self.root / name, part)
        except FileNotFoundError:
            return None
        return part.relative_to(self.root).as_posix()

    @_reaching
    def back(self, aside: str, name: str) -> None:
        if (self.root / name).exists():
            self.remove(aside)
        else:
            os.rename(self.root / aside, self.root / name)

    @_reaching
    def tidy(self) -> None:
        for found in self.names(PARTS):
            if found.at < time.time() - ABANDONED_S:
                self.remove(found.name)

    def _insist(self) -> None:
        """Raise Unreachable if the directory itself has gone."""
        if not self.root.is_dir():
            raise Unreachable(os.strerror(errno.ENOENT))

    def _plain(self, name: str) -> Path:
        """The path of a file. Raises Refused if it, or a folder of it, is a link or no file."""
        path = self.root / name
        for each in (path, *path.parents):
            if each == self.root:
                break
            if each.is_symlink():
                raise Refused(f"{each.relative_to(self.root)} is a symbolic link")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise Refused(f"{name} is no file")  # to open a pipe would take for ever
        return path

    def _part(self) -> Path:
        folder = self._folder(self.root / PARTS)
        return folder / f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex}"

    def _folder(self, path: Path) -> Path:
        """A folder of the store, made if need be, with the mode and the group of the store."""
        if not path.is_dir():
            self._insist()
            if path.parent != self.root:
                self._folder(path.parent)
            part = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
            part.mkdir()
            with suppress(PermissionError):  # not of that group: the mode has to do
                os.chown(part, -1, self._group)
            os.chmod(part, self._mode)
            try:
                os.rename(part, path)
            except OSError:  # another writer has just made it, and put something into it
                part.rmdir()
        return path

    def _finish(self, part: Path, name: str, again: bool) -> None:
        """Flush a file and give it its name. again: in the place of one that is there."""
        self._give(part, self._mode & 0o444)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        path = self.root / name
        folder = self._folder(self._plain(str(path.parent.relative_to(self.root))))
        if again:
            os.replace(part, path)
        else:
            try:
                os.link(part, path)
            except FileExistsError:
                return
            except OSError:  # no hard links there
                os.replace(part, path)
        here = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(here)
        finally:
            os.close(here)

    def _give(self, path: Path, mode: int) -> None:
        """Give a file of one's own to those who share the store, whatever the umask was."""
        if os.stat(path).st_gid != self._group and not mode & stat.S_IROTH:
            os.chown(path, -1, self._group)
        os.chmod(path, mode)

    def _link_in(self, file: Path, part: Path) -> bool:
        """Whether a file was linked: it is one's own, and may be given to the store's group."""
        now = os.stat(file)
        try:
            if now.st_uid != self._user:
                return False
            os.link(file, part)
            self._give(part, self._mode & 0o444)
        except OSError:
            _unlink(part)
            return False
        return True


def _clone(file: Path, to: Path) -> bool:
    """Whether a file could be cloned to a new name."""
    with open(file, "rb") as source:
        try:
            with open(to, "xb") as target:
                fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
            return True
        except OSError as error:
            _unlink(to)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            return False


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # it is only a part
        return


class Bucket:
    """A bucket, or whatever else fsspec can reach. Credentials are where its library has them."""

    def __init__(self, url: str):
        scheme, self.shown = url.partition("://")[0], url
        try:
            import fsspec

            self.fs, self.root = fsspec.core.url_to_fs(url)
            self.fs.exists(self.root)
        except ImportError:
            hint = f": pip install -r {S3_REQUIREMENTS}" if scheme == "s3" else ""
            raise Unreachable(f"no package for {scheme}:// is installed{hint}") from None
        except Exception as error:
            raise Unreachable(why(error)) from None

    @_reaching
    def read(self, name: str) -> bytes | None:
        try:
            return self.fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    @_reaching
    def write(self, name: str, data: bytes, again: bool) -> None:
        # If-None-Match, where the server knows it: of two writers the first one stays.
        try:
            self.fs.pipe_file(self._path(name), data, mode="overwrite" if again else "create")
        except FileExistsError:
            return
        except FileNotFoundError as error:  # the bucket is
            raise Unreachable(why(error)) from None

    @_reaching
    def size(self, name: str) -> int | None:
        try:
            self.fs.invalidate_cache()
            return self.fs.info(self._path(name))["size"]
        except FileNotFoundError:
            return None

    @_reaching
    def put(self, name: str, file: Path, again: bool) -> bool:
        if not again and self.size(name) == file.stat().st_size:
            return False
        try:
            self.fs.put_file(str(file), self._path(name))
        except FileNotFoundError as error:
            raise Unreachable(why(error)) from None
        return True

    @_reaching
    def take(self, name: str, to: Path) -> str:
        self.fs.get_file(self._path(name), str(to))
        return "downloaded"

    @_reaching
    def sha256(self, name: str) -> str:
        with self.fs.open(self._path(name), "rb") as file:
            found = hashlib.sha256()
            while piece := file.read(PIECE):
                found.update(piece)
            return found.hexdigest()

    @_reaching
    def names(self, folder: str) -> Iterator[Found]:
        self.fs.invalidate_cache()
        found = self.fs.find(self._path(folder), detail=True)
        for path, info in found.items():
            yield Found(path.removeprefix(f"{self.root}/"), info["size"], self._at(info))

    @_reaching
    def remove(self, name: str, at: float | None = None) -> None:
        try:
            if at is None or self._at(self.fs.info(self._path(name))) <= at:
                self.fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def aside(self, name: str) -> str | None:
        return name

    def back(self, aside: str, name: str) -> None:
        """Nothing: it was not moved."""

    def tidy(self) -> None:
        """Nothing: an upload that was cut off is no object."""

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @staticmethod
    def _at(info: dict[str, Any]) -> float:
        """When an object was written, in seconds since 1970."""
        at = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
        return at.timestamp() if hasattr(at, "timestamp") else float(at)

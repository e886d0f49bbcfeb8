"""A cache of the sha256 of files from outside. A file is read again only after its stat changed.

The stat is (size, mtime, ctime, inode). So a file that was only touched or copied is read again and
found equal, and a file that was replaced by one with an older mtime is read again and found
different. The cache is the file resources/contents.json.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lib.errors import UserError
from lib.formats.model_files import model_files
from lib.record.digests import sha256_of
from lib.record.measured import stamp
from lib.record.recipe import write_json

STORE = Path("resources/contents.json")
WORTH_SAYING = 1 << 30  # bytes: hashing more than this takes long enough to be announced


class Contents:
    """A cache of digests of files. Call `save()` after the last question.

    Paths are relative to the working directory. Every question raises OSError if a file cannot be
    read.
    """

    def __init__(self, store: Path = STORE):
        """store: the cache's file. If it is missing or damaged, the cache is empty."""
        self.store = store
        self._changed = False
        self._expected: dict[tuple[str, bool], None] = {}
        try:
            self._known: dict[str, list] = json.loads(store.read_text())
        except (OSError, ValueError):
            self._known = {}

    def file(self, path: str | os.PathLike) -> str:
        """sha256 (hex) of one file."""
        return self._many([str(path)])[0]

    def directory(self, path: str, allow_pickle: bool = False) -> dict[str, str]:
        """{name: sha256 (hex)} of the files of a model directory that a step may read.

        Directories that are expected are read with it, side by side. allow_pickle, and the
        UserErrors it raises: as `model_files`.
        """
        files = model_files(Path(path), allow_pickle)
        names = [file.relative_to(path).as_posix() for file in files]
        also = self._expected_files()
        sha256 = self._many([str(file) for file in [*files, *also]])
        return dict(zip(names, sha256[: len(names)], strict=True))

    def expect(self, path: str, allow_pickle: bool = False) -> None:
        """Note that `directory` will be asked about this directory."""
        self._expected[path, allow_pickle] = None

    def _expected_files(self) -> list[Path]:
        expected, self._expected = self._expected, {}
        found: list[Path] = []
        for path, allow_pickle in expected:
            with suppress(UserError, OSError):  # `directory` will raise it
                found += model_files(Path(path), allow_pickle)
        return found

    def remembered(self, path: str, key: str, ask) -> str:
        """The answer of `ask()` about the file at `path`, asked again only if the file has changed.

        key: the name of the question, such as "version".
        """
        entry, now = f"{path}#{key}", stamp(path)
        known = self._known.get(entry)
        if known is None or known[:4] != now:
            self._known[entry] = known = [*now, ask()]
            self._changed = True
        return known[4]

    def seen(self, digests: set[str]) -> dict[str, list[int]]:
        """{absolute path: [size, second of its date]} of the files with these sha256 (hex).

        The second only, and no inode, because other machines may see others.
        """
        return {
            os.path.abspath(name): [entry[0], entry[1] // 10**9]
            for name, entry in self._known.items()
            if isinstance(entry[4], str) and entry[4] in digests
        }

    def save(self) -> None:
        """Write the cache, if it has changed."""
        if self._changed:
            write_json(self.store, self._known)
            self._changed = False

    def _many(self, paths: list[str]) -> list[str]:
        stamps = {path: stamp(path) for path in paths}
        todo = [path for path, now in stamps.items() if self._known.get(path, [])[:4] != now]
        size = sum(stamps[path][0] for path in todo)
        if size > WORTH_SAYING:
            print(
                f"New or changed sources: {len(todo)}, {size / 1e9:.1f} GB. Reading them once ...",
                file=sys.stderr,
            )
        if todo:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for path, sha256 in zip(todo, pool.map(sha256_of, todo), strict=True):
                    self._known[path] = [*stamps[path], sha256]
            self._changed = True
        return [self._known[path][4] for path in paths]

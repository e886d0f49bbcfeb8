"""What a step has hashed of the files that it makes, before `commit` asks."""

import json
import os
from pathlib import Path

MEASURED = ".measured.json"


def stamp(path: str | os.PathLike) -> list[int]:
    """What changes when a file is written or replaced: its size, mtime, ctime (ns) and inode."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def remember(attempt: Path, found: dict[Path, str], stamps: dict[Path, list[int]]) -> None:
    """Note the sha256 (hex) of files. attempt: the directory in which the step works.

    stamps: of the files, as they were when they were read or written to the end.
    """
    known = {str(file): [stamps[file], sha256] for file, sha256 in found.items()}
    (attempt / MEASURED).write_text(json.dumps(known))


def remembered(attempt: Path) -> dict[Path, str]:
    """{file: its sha256 (hex)}, of the noted files that have not been changed since."""
    try:
        known = json.loads((attempt / MEASURED).read_text())
    except (FileNotFoundError, ValueError):  # what noted them may have been killed
        return {}
    there = {Path(file): noted for file, noted in known.items() if os.path.exists(file)}
    return {file: sha256 for file, (before, sha256) in there.items() if before == stamp(file)}

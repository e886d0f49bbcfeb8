"""List the orphans: what Quantmill has made and the config no longer declares.

With --delete, and with `snakemake clean_orphans --config yes=true`, delete them. Only an artifact
that has a record is Quantmill's; its log and its benchmark belong to it. All other files are listed
and never deleted.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.errors import program
from lib.record import recipe as recipes
from lib.record.layout import SNAKEMAKE_MARK, artifact_of, building_directories
from lib.record.unrecorded import unrecorded
from lib.run.answers import columns, open_session, parser
from lib.run.hold import held
from lib.run.session import Session
from lib.units import count, human

SHOWN = 200


@dataclass
class Orphan:
    """An artifact, a log or a benchmark that the config does not declare.

    path: where it lies. kind: the rule that made it, or what it is. files: everything that is
    deleted with it. others: files in its directory that Quantmill did not make.
    """

    path: str
    kind: str
    files: list[Path]
    others: list[Path]
    link: bool = False  # to another artifact: deleting it frees no room on the disk

    @property
    def bytes(self) -> int:
        """Bytes that its deletion frees; 0 for a link."""
        return (
            0
            if self.link
            else sum(file.lstat().st_size for file in self.files if not file.is_dir())
        )


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--delete", action="store_true", help="delete them, if the option `yes` says so"
    )
    arguments = options.parse_args()
    # What the whole config declares is no orphan, whichever models and families this run is about.
    session = open_session(arguments.config, model=[], skip=[])
    orphans = list(find(session))
    strangers = [file for orphan in orphans for file in orphan.others]
    strangers += unrecorded({file for orphan in orphans for file in orphan.files})
    print("\n".join(shown(orphans, strangers)))
    if not arguments.delete or not orphans:
        return
    if not session.options.yes:
        print(
            "\nNothing is deleted yet. To delete exactly these:\n"
            "    snakemake clean_orphans --config yes=true"
        )
        return
    size = total(orphans)
    for orphan in orphans:
        delete(orphan)
    print(f"\nDeleted, {human(size)}.")


def total(orphans: list[Orphan]) -> int:
    """Bytes that the deletion of all these frees."""
    return sum(orphan.bytes for orphan in orphans)


def find(session: Session) -> Iterator[Orphan]:
    """The orphans under results/, logs/ and benchmarks/, in this order.

    They are artifacts with a record, logs and benchmarks without an artifact, and at last the
    working directories of killed builds.
    """
    claimed = set()
    for record_path in sorted(Path("results").rglob(f"*{recipes.SUFFIX}")):
        path = str(record_path).removesuffix(recipes.SUFFIX)
        record = recipes.read(path)
        if record is None or declared(session, path):
            continue
        files, others = content(Path(path), record)
        claimed.add(path)
        yield Orphan(
            path,
            record.recipe.get("step", ""),
            [*files, record_path, *journal(path)],
            others,
            record.is_link,
        )
    for top, suffix in (("logs", ".log"), ("benchmarks", ".tsv")):
        for file in sorted(
            Path(top).glob(f"*/**/*{suffix}")
        ):  # directly in logs/: of targets such as this one
            path = journal_of(file, top, suffix)
            if path not in claimed and not declared(session, path):
                yield Orphan(str(file), top.removesuffix("s"), [file], [])
    for building in sorted(building_directories("results")):
        if not declared(session, artifact_of(building)) and not held(building):
            files = [*building.rglob("*"), building]
            yield Orphan(str(building), "left by a killed build", files, [])


def declared(session: Session, path: str) -> bool:
    """Whether the config declares an artifact at this path."""
    return session.graph.find(path) is not None


def content(path: Path, record: recipes.Record) -> tuple[list[Path], list[Path]]:
    """The files at an artifact's path: (those that its record lists, all others).

    A single file is another one if its size is not the record's.
    """
    if not path.is_dir():
        there = [path] if os.path.lexists(path) else []
        if there and path.is_symlink():
            is_ours = record.is_link
        else:
            is_ours = there and path.lstat().st_size == record.bytes
        return (there, []) if is_ours else ([], there)
    inside = [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    ours = [
        f
        for f in inside
        if f.relative_to(path).as_posix() in record.files or f.name == SNAKEMAKE_MARK
    ]
    return ours, [file for file in inside if file not in ours]


def journal(path: str) -> list[Path]:
    """The log and the benchmark of an artifact, as far as they are there."""
    beside = path.removeprefix("results/")
    return [p for p in (Path(f"logs/{beside}.log"), Path(f"benchmarks/{beside}.tsv")) if p.exists()]


def journal_of(file: Path, top: str, suffix: str) -> str:
    """The path of the artifact that a log or a benchmark belongs to.

    top: the directory of all logs or of all benchmarks. suffix: that of the file.
    """
    beside = str(file.relative_to(top)).removesuffix(suffix)
    return beside if beside.startswith("resources/") else f"results/{beside}"


def shown(orphans: list[Orphan], strangers: list[Path]) -> list[str]:
    """The lines to print: a line for each orphan, then the files that Quantmill did not make."""
    if not orphans:
        lines = ["No orphans: the config declares all that Quantmill has made here."]
    else:
        number = count(len(orphans), "orphan")
        lines = [f"{number} that the config no longer declares, {human(total(orphans))}:"]
        rows = [(orphan.path, orphan.kind, human(orphan.bytes)) for orphan in orphans]
        lines += columns(rows[:SHOWN], right=(2,))
        lines += [f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    if strangers:
        lines += [
            "",
            f"{len(strangers)} without a record, so not known to be made by Quantmill; "
            "never deleted:",
        ]
        lines += [f"  {path}" for path in strangers[:20]]
        lines += [f"  and {len(strangers) - 20} more"] if len(strangers) > 20 else []
    return lines


def delete(orphan: Orphan) -> None:
    """Delete an orphan's files, its record last, then the directories that this leaves empty."""
    files = sorted(orphan.files, key=lambda file: file.name.endswith(recipes.SUFFIX))
    for file in files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)
    for place in {Path(orphan.path), *(file.parent for file in files)}:
        while len(place.parts) > 1 and place.is_dir() and not any(place.iterdir()):
            place.rmdir()
            place = place.parent


if __name__ == "__main__":
    program(main)

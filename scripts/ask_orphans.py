"""List the orphans: what Quantmill has made and the config no longer declares.

With --delete, and with `snakemake clean_orphans --config yes=true`, delete them. Only an artifact
that has a record is Quantmill's, with its log and its benchmark, and what `snakemake speed` has
measured of a model. All other files are listed and never deleted. What a model or a study has that
waits for a choice is no orphan: the choice will say what is declared.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.errors import program
from lib.record import recipe as recipes
from lib.record.layout import (
    SNAKEMAKE_MARK,
    STUDIES,
    artifact_of,
    building_directories,
    needs_no_record,
    speed_directory,
)
from lib.record.unrecorded import recorded, unrecorded
from lib.run.answers import columns, first, open_session, parser
from lib.run.hold import held
from lib.run.session import Session
from lib.units import count, human

SHOWN, SHOWN_OTHERS = 200, 20
JOURNALS = (("logs", ".log"), ("benchmarks", ".tsv"), ("benchmarks", ".cpu"))


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
        files = () if self.link else self.files
        return sum(file.lstat().st_size for file in files if not file.is_dir())


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
    print("\n".join(shown(orphans, strangers, waiting(session))))
    if not arguments.delete or not orphans:
        return
    if not session.options.yes:
        print(
            "\nNothing is deleted yet. To delete exactly these:\n"
            "    snakemake clean_orphans --config yes=true"
        )
        return
    size = sum(orphan.bytes for orphan in orphans)
    for orphan in orphans:
        delete(orphan)
    print(f"\nDeleted, {human(size)}.")


def find(session: Session) -> Iterator[Orphan]:
    """The orphans under results/, logs/ and benchmarks/, in this order.

    They are artifacts with a record, what was measured of a model's speed, logs and benchmarks
    without an artifact, and at last the working directories of killed builds.
    """
    graph, claimed = session.graph, set()

    def declared(path: str) -> bool:
        return bool(graph.find(path) or graph.waits(path))

    for path in sorted(recorded("results"), key=Path):
        record = recipes.read(path)
        if record is None or declared(path):
            continue
        ours, others = content(Path(path), record)
        beside = path.removeprefix("results/")
        journals = (Path(f"{top}/{beside}{suffix}") for top, suffix in JOURNALS)
        files = [*ours, Path(recipes.path_of(path)), *filter(Path.exists, journals)]
        claimed.add(path)
        yield Orphan(path, record.recipe.get("step", ""), files, others, record.is_link)
    for folder in sorted(Path().glob(str(speed_directory("*")))):
        files = [*filter(needs_no_record, folder.glob("*"))]
        if files and folder.parent.name not in session.config.models:
            yield Orphan(str(folder), "speed", files, [])
    for top, suffix in JOURNALS:
        # Those directly in logs/ are of targets such as this one.
        for file in sorted(Path(top).glob(f"*/**/*{suffix}")):
            beside = str(file.relative_to(top)).removesuffix(suffix)
            path = beside if beside.startswith("resources/") else f"results/{beside}"
            if path not in claimed and not declared(path):
                yield Orphan(str(file), top.removesuffix("s"), [file], [])
    for building in sorted(building_directories("results")):
        if not declared(artifact_of(building)) and not held(building):
            files = [*building.rglob("*"), building]
            yield Orphan(str(building), "left by a killed build", files, [])


def waiting(session: Session) -> list[str]:
    """The models and studies with something under results/ that wait, and for what; a line each."""
    homes = sorted([*Path("results").glob("*/"), *Path("results", STUDIES).glob("*/")])
    found = filter(None, (session.graph.waits(str(home)) for home in homes))
    return [text.partition(":")[0] for text in found]


def content(path: Path, record: recipes.Record) -> tuple[list[Path], list[Path]]:
    """The files at an artifact's path: (those that its record lists, all others).

    A single file is another one if its size is not the record's.
    """
    if not os.path.lexists(path):
        return [], []
    if not path.is_dir():
        is_link = path.is_symlink()
        is_ours = record.is_link if is_link else path.lstat().st_size == record.bytes
        return ([path], []) if is_ours else ([], [path])
    inside = [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
    ours = [
        f
        for f in inside
        if f.relative_to(path).as_posix() in record.files or f.name == SNAKEMAKE_MARK
    ]
    return ours, [file for file in inside if file not in ours]


def shown(orphans: list[Orphan], strangers: list[Path], waiting: list[str]) -> list[str]:
    """The lines to print: a line for each orphan, what waits, what Quantmill did not make."""
    if not orphans:
        which = "all else" if waiting else "all"
        lines = [f"No orphans: the config declares {which} that Quantmill has made here."]
    else:
        number = count(len(orphans), "orphan")
        size = human(sum(orphan.bytes for orphan in orphans))
        lines = [f"{number} that the config no longer declares, {size}:"]
        rows = [(orphan.path, orphan.kind, human(orphan.bytes)) for orphan in orphans]
        lines += first(columns(rows, right=(2,)), SHOWN, "  ")
    if waiting:
        lines += ["", "No orphans are looked for in what waits for a choice:"]
        lines += [f"  {text}" for text in waiting]
    if strangers:
        lines += [
            "",
            f"{len(strangers)} without a record, so not known to be made by Quantmill; "
            "never deleted:",
        ]
        lines += first([f"  {path}" for path in strangers], SHOWN_OTHERS, "  ")
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

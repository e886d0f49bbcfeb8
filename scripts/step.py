"""The frame around a step: step.sh calls it to begin and commit an artifact.

    step.py begin WANTED            holds the artifact through file descriptor 9, checks that the
                                    inputs are what the wanted recipe says, prints shell assignments
    step.py measure WANTED          hashes what was made while it is checked, for `commit`
    step.py same WANTED ARTIFACT    takes the bytes of another artifact if it was made by the same
                                    recipe; else ends with status 1
    step.py commit WANTED           hashes what was made, renames it into place, and writes its
                                    record last

WANTED is the file of the wanted recipe, JSON that the plan leaves: {artifact, outputs, directory,
links, rule, digest, recipe, inputs: {role: [path, digest]}, left}. lib/planning/handoff.py tells
why this is done. Standard library only, because it runs twice a step.
"""

import json
import os
import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves it out

from lib.errors import UserError, program
from lib.planning import handoff
from lib.record import recipe as recipes
from lib.record.bound import kind_of_machine
from lib.record.digests import flushed_digests
from lib.record.layout import (
    SNAKEMAKE_MARK,
    building_directory,
    clear,
    clear_but_hold,
    hold_file,
    times_file,
)
from lib.record.locks import NoLocks, is_written, lock
from lib.record.measured import remember, remembered, stamp
from lib.record.wanted import WantedRecipe
from lib.units import human

if TYPE_CHECKING:  # imported by steps that have a store
    from lib.store.offer import Offer

HOLD_FD = 9
BEGAN = ".began"  # when the step began, by a clock that nobody sets
SAME = ".same"  # of the artifact whose bytes are taken: its sha256, and on what it was built
RETRY = 75  # the exit status that asks step.sh to open the hold's file again


def main() -> int | None:
    verb, wanted_path, *rest = sys.argv[1:]
    wanted = WantedRecipe.read(Path(wanted_path))
    here = building_directory(wanted.artifact)
    if verb == "begin":
        begin(wanted, here, wanted_path)
    elif verb == "same":
        return 0 if take(wanted, Path(rest[0])) else 1
    elif verb == "measure" and not wanted.links:
        attempt = Path(os.environ["STAGE"])
        files = [file for path in wanted.outputs for file in files_of(attempt / Path(path).name)]
        before = {file: stamp(file) for file in files}
        remember(attempt, flushed_digests(files, remembered(attempt)), before)
    elif verb == "commit":
        offer = handoff.offer(wanted_path)
        insist_unchanged(wanted, wanted_path)
        commit(wanted, handoff.is_bound_to_machine(wanted_path), offer)
        handoff.set_back(wanted_path)
    return None


def begin(wanted: WantedRecipe, here: Path, wanted_path: str) -> None:
    """Hold the artifact, check the inputs, and print OUT, STAGE and OUT_NAME for the shell.

    Prints `exit 0` if another run has built the artifact meanwhile, or if it was taken from the
    store. here: the directory in which the step works. Raises UserError for an input that is not
    what the wanted recipe says.
    """
    name = wanted.artifact
    hold(hold_file(here), name)
    if is_built(wanted):
        say(f"ready   {name}: another run has just built it")
        clear(here)
        handoff.set_back(wanted_path)
        print("exit 0")
        return
    clear_but_hold(here)
    attempt = here / f"{os.uname().nodename}-{os.getppid()}"
    attempt.mkdir()
    (attempt / BEGAN).write_text(str(time.monotonic()))
    offer, made_from = handoff.offer(wanted_path), None
    fetch = handoff.beside(wanted_path, handoff.FETCH)
    listed = fetch["listed"] if fetch else offer is None or offer.listed
    (attempt / ".inputs.json").write_text("{}")  # by which `snakemake live` sees it at work
    try:
        if listed:
            made_from = {role: input_sha256(name, *up) for role, up in wanted.inputs.items()}
            insist_unchanged(wanted, wanted_path)
        if offer and offer.take and (how := take_from_store(wanted, offer, attempt, made_from)):
            handoff.set_back(wanted_path)
            print(f'mkdir -p "$(dirname "$2")"; echo {shlex.quote(how)} >"$2"; exit 0')
            return
        if fetch and (how := take_from_hub(wanted, fetch, attempt)):
            handoff.set_back(wanted_path)
            print(f'mkdir -p "$(dirname "$2")"; echo {shlex.quote(how)} >"$2"; exit 0')
            return
        if made_from is None:
            where = "the hub" if fetch else "the store"
            raise UserError(
                f"{name}: it was to be taken from {where}, and what it is made from is not here. "
                "Run the same command again: it is built then."
            )
    except UserError:
        clear(here)
        raise
    (attempt / ".inputs.json").write_text(json.dumps(made_from))
    say(f"build   {name}")
    print(f"STAGE={shlex.quote(str(attempt))}")
    print(f"OUT={shlex.quote(str(attempt / Path(name).name))}")
    print(f"OUT_NAME={shlex.quote(name)}")


def take_from_store(
    wanted: WantedRecipe, offer: "Offer", attempt: Path, made_from: dict[str, str] | None
) -> str | None:
    """Put the store's artifact into place, with its record; how, for the log. None: it has none.

    attempt: the directory in which this step works. made_from: as `visit.take` has `inputs`.
    """
    from lib.store import visit

    made, began = attempt / Path(wanted.artifact).name, time.monotonic()
    if (taken := visit.take(wanted, offer, made, made_from, say)) is None:
        drop(made)
        return None
    record, how = taken
    settle(record, made, attempt, time.monotonic() - began, "the store")
    return f"{how} from the store {offer.settings.location}, where it was built by the same recipe"


def take_from_hub(wanted: WantedRecipe, fetch: dict, attempt: Path) -> str | None:
    """As `take_from_store`, of a cold artifact from the hub. None: it is not what it was there.

    fetch: what `Taking.fetch` gives. Raises UserError if the hub cannot be reached.
    """
    from lib.hub.cold import NoLonger, bring
    from lib.record import cold

    made, began = attempt / Path(wanted.artifact).name, time.monotonic()
    record, repo = recipes.Record(**fetch["record"]), fetch["hub"]["repo"]
    try:
        bring(fetch["hub"], record, made)
    except NoLonger as error:
        say(f"refused {wanted.artifact}: {error}")
        cold.forget(wanted.artifact)
        drop(made)
        return None
    settle(record, made, attempt, time.monotonic() - began, repo)
    return f"downloaded from {repo}, to which it was published from here"


def drop(made: Path) -> None:
    """Remove what was taken only in part."""
    made.unlink(missing_ok=True) if not made.is_dir() else shutil.rmtree(made)


def settle(record: recipes.Record, made: Path, attempt: Path, seconds: float, where: str) -> None:
    """Put into place what was taken at `made`, with its record. where: from, in words."""
    put(made, Path(record.artifact))
    recipes.write(record)
    times_file(record.artifact).unlink(missing_ok=True)  # it does not tell how long a build takes
    clear(attempt.parent)
    say(f"taken   {record.artifact}  {human(record.bytes)}, {seconds:.0f} s, from {where}")


def hold(file: Path, name: str) -> None:
    """Hold the file that the shell has opened as descriptor 9; wait while another step holds it.

    name: the artifact's, for messages. Exits with RETRY if the file was removed meanwhile.
    """
    with suppress(NoLocks):
        if not lock(HOLD_FD):
            say(f"wait    {name}: another build of it still runs; this one goes on when that ends")
            lock(HOLD_FD, wait=True)
    try:
        current = os.stat(file)
    except FileNotFoundError:
        sys.exit(RETRY)
    if not os.path.samestat(current, os.fstat(HOLD_FD)):
        sys.exit(RETRY)


def is_built(wanted: WantedRecipe) -> bool:
    """Whether the artifact is there and whole, with the record of the wanted recipe."""
    for path in wanted.outputs:
        record = recipes.read(path)
        if record is None or not record.fits(wanted.digest) or not os.path.exists(path):
            return False
        if not wanted.directory and os.stat(path).st_size != record.bytes:
            return False
    return True


def input_sha256(name: str, path: str, digest: str) -> str:
    """The sha256 (hex) in the record of the input at `path`.

    name: the artifact's, for messages. digest: that of the recipe by which the plan expects the
    input to be made. Raises UserError if the record is of another one, or the size is wrong.
    """
    record = recipes.read(path)
    if record is None or not record.fits(digest):
        raise UserError(
            f"{name}: {path} is not what it was when this run was planned "
            "(the config or a source was changed meanwhile). Run the same command again."
        )
    if os.path.isfile(path) and os.stat(path).st_size != record.bytes:
        raise UserError(
            f"{name}: {path} has another size than when it was made. Run the same command again."
        )
    return record.sha256


def insist_unchanged(wanted: WantedRecipe, wanted_path: str) -> None:
    """Raise UserError if a file from outside is not what it was when the plan has read it."""
    for path, seen in (handoff.beside(wanted_path, handoff.SEEN) or {}).items():
        now = stamp(path) if os.path.exists(path) else None
        if now is None or [now[0], now[1] // 10**9] != seen:
            raise UserError(
                f"{wanted.artifact}: {path} was changed since this run was planned. "
                "Run the same command again."
            )


def commit(wanted: WantedRecipe, by_machine: bool, offer: "Offer | None") -> None:
    """Hash what was made, rename it into place, write the records, remove the working directory.

    by_machine: the bytes are bound to the kind of machine, which the records tell then. offer: of
    the store, where what was made is put then. Raises UserError if an output is missing or empty,
    or an input was built again meanwhile.
    """
    attempt = Path(os.environ["STAGE"])
    inputs = json.loads((attempt / ".inputs.json").read_text())
    for role, (path, digest) in wanted.inputs.items():
        if input_sha256(wanted.artifact, path, digest) != inputs[role]:
            raise UserError(
                f"{wanted.artifact}: {path} was built again while this was made from it"
            )
    notes = attempt / "notes.json"
    records = []
    same = json.loads((attempt / SAME).read_text()) if (attempt / SAME).exists() else {}
    machine = same["machine"] if same else kind_of_machine() if by_machine else {}
    for path in wanted.outputs:
        made = attempt / Path(path).name
        if not os.path.lexists(made):
            raise UserError(f"{path}: the step ended well but made no such file")
        record = recipes.Record(path, wanted.recipe, wanted.digest, 0, "", inputs=inputs)
        record.machine = machine
        measure(made, record, wanted.links, attempt)
        if same and same["sha256"] != record.sha256:
            raise UserError(f"{path}: what it is taken from was damaged: `snakemake verify`")
        if notes.exists():
            record.notes |= json.loads(notes.read_text())
        records.append((made, record))
    for made, record in records:
        put(made, Path(record.artifact))
    for _, record in records:
        recipes.write(record)
    seconds = note_time(wanted.artifact, attempt)
    size = sum(record.bytes for _, record in records)
    say(f"built   {wanted.artifact}  {human(size)}, {seconds:.0f} s")
    if offer and offer.put:
        from lib.store import visit

        visit.put(records[0][1], offer, say)
    clear(attempt.parent)


def take(wanted: WantedRecipe, other: Path) -> bool:
    """Put links to the files of another directory in place of the output, with its digests.

    other: an artifact. False, and nothing is done, if it was not made by the same recipe.
    """
    record, attempt = recipes.read(str(other)), Path(os.environ["STAGE"])
    if record is None or not record.fits(wanted.digest) or record.acceptance(wanted.digest):
        return False
    made = attempt / Path(wanted.artifact).name
    try:
        shutil.copytree(other, made, copy_function=os.link)
    except OSError:  # a file system without hard links
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(other, made)
    (attempt / "notes.json").write_text(json.dumps(record.notes))
    (attempt / SAME).write_text(json.dumps({"sha256": record.sha256, "machine": record.machine}))
    print(f"{other} was made by the same recipe: its files are taken")
    return True


def note_time(artifact: str, attempt: Path) -> float:
    """Write what the step took beside Snakemake's benchmark, for forecasts; its seconds.

    Snakemake samples core seconds every 30 s and does not see what ends in between, and its seconds
    are wrong where the clock is set meanwhile.
    """
    seconds = time.monotonic() - float((attempt / BEGAN).read_text())
    children = (attempt / ".times").read_text().splitlines()[1]  # "1m2.345s 0m0.678s"
    parts = (part.rstrip("s").split("m") for part in children.replace(",", ".").split())
    spent = sum(60 * int(minutes) + float(seconds) for minutes, seconds in parts)
    times_file(artifact).parent.mkdir(parents=True, exist_ok=True)
    times_file(artifact).write_text(f"{spent:.2f} {seconds:.2f}\n")
    return seconds


def measure(made: Path, record: recipes.Record, links: bool, attempt: Path) -> None:
    """Fill in the record's bytes, sha256 and, for a directory, files. Links are not hashed.

    made: what was built. attempt: the directory in which. Raises UserError if it is empty, or a
    process of the step still writes to it.
    """
    files = files_of(made)
    if not links and (late := next(filter(is_written, files), None)):
        raise UserError(
            f"{record.artifact}: the step ended well, but {late.name} is still being written"
        )
    found = {} if links else flushed_digests(files, remembered(attempt))
    if made.is_dir():
        for path in files:
            name = path.relative_to(made).as_posix()
            record.files[name] = [path.stat().st_size, found.get(path, "")]
        if not record.files:
            raise UserError(f"{record.artifact}: the step ended well but made an empty directory")
        record.bytes = sum(size for size, _ in record.files.values())
        record.sha256 = record.digest if links else recipes.digest(record.files)
    elif links:
        record.bytes = made.stat().st_size
        (source,) = record.recipe["sources"].values()
        record.sha256 = source["sha256"]
        record.notes["link"] = True
    else:
        record.bytes = made.stat().st_size
        record.sha256 = found[made]
        if not record.bytes:
            raise UserError(f"{record.artifact}: the step ended well but made an empty file")


def files_of(made: Path) -> list[Path]:
    """The files of an output, which is a file or a directory."""
    if not made.is_dir():
        return [made]
    found = (path for path in sorted(made.rglob("*")) if path.name != SNAKEMAKE_MARK)
    return [path for path in found if path.is_file()]


def put(made: Path, path: Path) -> None:
    """Rename `made` to `path`. A directory that Snakemake has prepared there is moved away."""
    if path.is_dir() and not path.is_symlink():
        os.replace(path, made.with_name(f".{made.name}.old"))
    os.replace(made, path)


def say(line: str) -> None:
    """Print a line on the console, which is stderr."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    program(main, "FAILED  ")

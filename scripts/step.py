"""The frame around a step: `begin` and `commit` of step.sh.

`begin` (holding the artifact's lock) makes sure that everything the artifact is made from is there and is what
the wanted recipe says, and prints shell assignments. `commit` hashes what was made, renames it into place and
writes its record last. Standard library only: this runs twice for each step.
"""

import fcntl
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves it out

from lib.record import recipe as recipes
from lib.record.digests import sha256_of
from lib.units import human

LOCK_FD = 9
RETRY = 75  # the exit status that asks step.sh to open the lock file again
SNAKEMAKE_MARK = ".snakemake_timestamp"  # Snakemake puts it into directory() outputs


def main() -> None:
    verb, wanted_path, *rest = sys.argv[1:]
    wanted = json.loads(Path(wanted_path).read_text())
    if verb == "lock":
        stage(wanted).mkdir(parents=True, exist_ok=True)
        print(stage(wanted) / "lock")
    elif verb == "begin":
        begin(wanted, wanted_path)
    elif verb == "commit":
        commit(wanted, float(rest[0]))
        os.utime(wanted_path, (0, 0))


def stage(wanted: dict) -> Path:
    """The directory beside an artifact in which it is made."""
    path = Path(wanted["artifact"])
    return path.parent / f".{path.name}.building"


def begin(wanted: dict, wanted_path: str) -> None:
    """Take the lock, check the inputs, and print OUT and STAGE for the shell."""
    here, name = stage(wanted), wanted["artifact"]
    take_lock(here / "lock", name)
    if is_built(wanted):
        say(f"ready   {name}: another run has just built it")
        shutil.rmtree(here)
        os.utime(wanted_path, (0, 0))
        print("exit 0")
        return
    try:
        made_from = {role: input_sha256(name, *up) for role, up in wanted["inputs"].items()}
    except SystemExit:
        shutil.rmtree(here)
        raise
    for old in here.iterdir():
        if old.name != "lock":
            old.unlink() if old.is_symlink() else shutil.rmtree(old)
    attempt = here / f"{os.uname().nodename}-{os.getppid()}"
    attempt.mkdir()
    (attempt / ".inputs.json").write_text(json.dumps(made_from))
    say(f"build   {name}")
    print(f"STAGE={shlex.quote(str(attempt))}")
    print(f"OUT={shlex.quote(str(attempt / Path(name).name))}")
    print(f"OUT_NAME={shlex.quote(name)}")


def take_lock(lock: Path, name: str) -> None:
    """Lock the file that the shell has opened; wait while another build of the same artifact still runs."""
    try:
        fcntl.flock(LOCK_FD, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"wait    {name}: another build of it still runs; this one goes on when that ends")
        fcntl.flock(LOCK_FD, fcntl.LOCK_EX)
    try:
        current = os.stat(lock)
    except FileNotFoundError:
        sys.exit(RETRY)
    if not os.path.samestat(current, os.fstat(LOCK_FD)):
        sys.exit(RETRY)


def is_built(wanted: dict) -> bool:
    """Whether the artifact is there, whole, as the wanted recipe says."""
    for path in wanted["outputs"]:
        record = recipes.read(path)
        if record is None or not record.fits(wanted["digest"]) or not os.path.exists(path):
            return False
        if not wanted["directory"] and os.stat(path).st_size != record.bytes:
            return False
    return True


def input_sha256(name: str, path: str, digest: str) -> str:
    """sha256 of an input, from its record, which must be of the recipe that the plan counted on."""
    record = recipes.read(path)
    if record is None or not record.fits(digest):
        sys.exit(
            f"FAILED  {name}: {path} is not what it was when this run was planned "
            "(the config or a source was changed meanwhile). Run the same command again."
        )
    if os.path.isfile(path) and os.stat(path).st_size != record.bytes:
        sys.exit(
            f"FAILED  {name}: {path} has another size than when it was made. Run the same command again."
        )
    return record.sha256


def commit(wanted: dict, seconds: float) -> None:
    """Hash, rename into place, write the records, remove the stage."""
    attempt = Path(os.environ["STAGE"])
    inputs = json.loads((attempt / ".inputs.json").read_text())
    for role, (path, digest) in wanted["inputs"].items():
        if input_sha256(wanted["artifact"], path, digest) != inputs[role]:
            sys.exit(
                f"FAILED  {wanted['artifact']}: {path} was built again while this was made from it"
            )
    notes = attempt / "notes.json"
    records = []
    for path in wanted["outputs"]:
        made = attempt / Path(path).name
        if not os.path.lexists(made):
            sys.exit(f"FAILED  {path}: the step ended well but made no such file")
        record = recipes.Record(path, wanted["recipe"], wanted["digest"], 0, "", inputs=inputs)
        measure(made, record, wanted["links"])
        if notes.exists():
            record.notes |= json.loads(notes.read_text())
        records.append((made, record))
    for made, record in records:
        put(made, Path(record.artifact))
    for _, record in records:
        recipes.write(record)
    shutil.rmtree(attempt.parent)
    size = sum(record.bytes for _, record in records)
    say(f"built   {wanted['artifact']}  {human(size)}, {seconds:.0f} s")


def measure(made: Path, record: recipes.Record, links: bool) -> None:
    """Fill in bytes, sha256 and, for a directory, its files. Links are not followed to be hashed."""
    if made.is_dir():
        for path in sorted(made.rglob("*")):
            if path.is_file() and path.name != SNAKEMAKE_MARK:
                sha = "" if links else sha256_of(path, flush=True)
                record.files[path.relative_to(made).as_posix()] = [path.stat().st_size, sha]
        if not record.files:
            sys.exit(f"FAILED  {record.artifact}: the step ended well but made an empty directory")
        record.bytes = sum(size for size, _ in record.files.values())
        record.sha256 = record.digest if links else recipes.digest(record.files)
    elif links:
        record.bytes = made.stat().st_size
        (source,) = record.recipe["sources"].values()
        record.sha256 = source["sha256"]
        record.notes["link"] = True
    else:
        record.bytes = made.stat().st_size
        record.sha256 = sha256_of(made, flush=True)
        if not record.bytes:
            sys.exit(f"FAILED  {record.artifact}: the step ended well but made an empty file")


def put(made: Path, path: Path) -> None:
    """Rename into place. What Snakemake has left there (it prepares directories) gives way."""
    if path.is_dir() and not path.is_symlink():
        old = made.with_name(f".{made.name}.old")
        os.replace(path, old)
    os.replace(made, path)


def say(line: str) -> None:
    """A line for the console."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()

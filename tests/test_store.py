"""The store: what a colleague has built is taken, never worse than built, and never instead of it.

Most tests run single steps in a directory of their own, with the frame that rules put around them;
those with `stock` run Snakemake beside a store that has all of the small project.
"""

import copy
import fcntl
import functools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import ask_store
from ask_store import Kept, unneeded
from lib.planning import handoff
from lib.planning.staleness import State
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.recipe import Record
from lib.record.wanted import WantedRecipe
from lib.store import notes, visit
from lib.store.entry import Refused
from lib.store.offer import Offer
from lib.store.places import FICLONE, Directory, Found, Unreachable
from lib.store.store import Settings, Store, content_name, entry_name
from project import FORMS, ROOT, Planned, Project, of, sha256, shards
from test_keys import make_pair

NOTHING: set[str] = set()
SCRIPTS = ROOT / "scripts"
IT = "results/X/it.bin"
UP = "results/X/up.bin"
SIZE = 100_000
BUILT = "".join(f"line {number}\n" for number in range(SIZE // 8)).encode()[:SIZE]
BUILD = f'head -c {SIZE} "$QM_BYTES" >"$OUT"'
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be other users")


def artifact(path: str = IT, **details) -> Artifact:
    """An artifact of no rule in particular."""
    made = Artifact(path, "rule", "X", {}, **details)
    made.recipe = {"step": "rule", "options": {"of": path}, "inputs": {}, "sources": {}}
    made.recipe |= {"tools": {}, "code": "c"}
    made.recipe["inputs"] = {role: up.digest for role, up in made.inputs.items()}
    return made


class Here:
    """A working directory in which single steps run. user: by number; None: this one."""

    def __init__(self, path: Path, store: Path | str, user: int | None = None, **keys: str):
        self.path, self.user = path, user
        self.settings = Settings(str(store), **keys)
        path.mkdir(exist_ok=True)
        (path / "bytes").write_bytes(BUILT)
        if user is not None:
            os.chown(path, user, user)

    def step(
        self, made: Artifact, build: str = BUILD, take=True, planned=None, listed=True, put=True
    ) -> subprocess.CompletedProcess:
        """Run the step of an artifact."""
        os.chdir(self.path)
        behind = {up.path: up.digest for up in made.inputs.values()}
        offer = Offer(self.settings, take, planned, listed, put, behind)
        wanted = handoff.leave(made, offer)
        python = sys.executable if self.user is None else others_python()
        script = (
            f"set -euo pipefail; export QM_PYTHON={python} QM_SCRIPTS={SCRIPTS} "
            f"QM_BYTES={self.path}/bytes; . {SCRIPTS}/step.sh; "
            f"step() {{ begin {wanted} logs/it.log; {build}; commit; }}; step"
        )
        command = ["bash", "-c", script]
        if self.user is not None:
            subprocess.run(["chown", "-R", f"{self.user}:{self.user}", self.path], check=True)
            ids = [f"--reuid={self.user}", f"--regid={self.user}", f"--groups={TEAM}"]
            command = ["setpriv", *ids, *command]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def good(self, path: str = IT) -> bool:
        """Whether the artifact is there as it should be, with its record, and nothing beside it."""
        record = recipes.read(path, self.path)
        whole = record and record.sha256 == sha256(self.path / path)
        left = [*self.path.rglob(".*.building"), *self.path.rglob("*.part")]
        return bool(whole) and (self.path / path).read_bytes() == BUILT and not left


TEAM = 54321  # a group's number
NOBODY = 65534  # who has a name, as Snakemake wants it
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c"]


@functools.cache
def others_python() -> str:
    """A Python that other users may run; this one may lie in a home of root's."""
    for python in (sys.executable, "/usr/bin/python3"):
        version = f"{python} -c 'import sys; sys.exit(sys.version_info < (3, 11))'"
        if subprocess.run([*AS_NOBODY, version], capture_output=True).returncode == 0:
            return python
    pytest.skip("no Python 3.11 that other users may run")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty directory for a store."""
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def here(tmp_path: Path, store: Path, monkeypatch) -> Here:
    """A working directory with its store."""
    monkeypatch.chdir(tmp_path)
    return Here(tmp_path / "here", store)


@pytest.fixture
def there(tmp_path: Path, here: Here, store: Path) -> Here:
    """A colleague's working directory, beside a store in which `it` is."""
    assert here.step(artifact()).returncode == 0
    return Here(tmp_path / "there", store)


def entry_of(store: Path, made: Artifact) -> Path:
    return store / entry_name(made.digest)


def content(store: Path) -> Path:
    """The only file of bytes in a store."""
    (found,) = (path for path in (store / "content").rglob("*") if path.is_file())
    return found


# A step


def test_what_one_has_built_another_takes_and_does_not_build(there: Here, store: Path):
    done = there.step(artifact(), build="exit 1")
    assert done.returncode == 0, done
    assert done.stderr == f"taken   {IT}  100.0 kB, 0 s, from the store\n"
    assert there.good()
    assert str(store) in (there.path / "logs/it.log").read_text()
    assert (there.path / handoff.path_of(artifact())).stat().st_mtime == 0


def test_the_bytes_lie_on_the_disk_once_and_cannot_be_written_through_a_checkout(
    here: Here, there: Here, store: Path
):
    there.step(artifact())
    first, second, kept = here.path / IT, there.path / IT, content(store)
    if clones(store):
        pytest.skip("this file system clones")
    assert first.stat().st_ino == second.stat().st_ino == kept.stat().st_ino
    assert stat.S_IMODE(kept.stat().st_mode) == 0o444
    second.unlink()  # as Snakemake does before a rebuild, and `clean_orphans`
    assert here.good() and sha256(kept) == sha256(first)


def clones(place: Path) -> bool:
    """Whether the file system can clone files (lib/store/places.py)."""
    with tempfile.TemporaryFile(dir=place) as one, tempfile.TemporaryFile(dir=place) as two:
        one.write(b"x" * 4096)
        one.flush()
        try:
            fcntl.ioctl(two.fileno(), FICLONE, one.fileno())
        except OSError:
            return False
    return True


@ROOT_ONLY
def test_where_files_can_be_cloned_nothing_lies_twice_and_an_edit_stays_ones_own(
    tmp_path: Path, monkeypatch
):
    disk, place = tmp_path / "disk", tmp_path / "xfs"
    place.mkdir()
    if not shutil.which("mkfs.xfs"):
        pytest.skip("mkfs.xfs is not installed (Debian: xfsprogs)")
    with disk.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True)
    if subprocess.run(["mount", "-o", "loop", disk, place], capture_output=True).returncode:
        pytest.skip("a loop device cannot be mounted here")
    monkeypatch.chdir(tmp_path)
    try:
        (place / "store").mkdir()
        here, there = (Here(place / name, place / "store") for name in ("here", "there"))
        build = 'head -c 30000000 /dev/zero | tr "\\0" x >"$OUT"'
        assert here.step(artifact(), build=build).returncode == 0
        before = shutil.disk_usage(place).used
        done = there.step(artifact(), build="exit 1")
        assert done.returncode == 0 and shutil.disk_usage(place).used - before < 10_000_000, done
        with (there.path / IT).open("r+b") as file:
            file.write(b"edited")
        assert content(place / "store").read_bytes()[:6] == b"xxxxxx"
    finally:
        os.chdir(tmp_path)
        subprocess.run(["umount", place], check=True)


def test_two_artifacts_with_the_same_bytes_lie_in_the_store_once(here: Here, store: Path):
    for name in ("one", "two"):
        assert here.step(artifact(f"results/X/{name}.bin")).returncode == 0
    assert len([path for path in (store / "entries").rglob("*.json")]) == 2
    assert content(store).stat().st_size == SIZE
    assert notes.summary(notes.PUT) == (2, SIZE)  # brought once


def test_a_directory_comes_back_with_all_its_files_under_their_names(here: Here, there: Here):
    made = artifact("results/X/dir", directory=True)
    build = 'mkdir -p "$OUT/deep/er"; echo a >"$OUT/a"; echo b >"$OUT/deep/er/b.txt"'
    for each in (here, there):
        done = each.step(made, build=build)
        assert done.returncode == 0, done
    assert "taken" in done.stderr
    record = recipes.read(made.path, there.path)
    assert record == recipes.read(made.path, here.path)
    assert list(record.files) == ["a", "deep/er/b.txt"]
    for name, (_, sha) in record.files.items():
        assert sha256(there.path / made.path / name) == sha


def cut(store: Path) -> None:
    content(store).chmod(0o644)
    file = content(store)
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-1])


def flip(store: Path) -> None:
    file = content(store)
    data = bytearray(file.read_bytes())
    data[SIZE // 2] ^= 1
    file.unlink()  # the builder's own file is the same inode
    file.write_bytes(data)


def lose(store: Path) -> None:
    content(store).unlink()


def of_another(store: Path) -> None:
    entry, other = entry_of(store, artifact()), artifact("results/X/other.bin")
    data = json.loads(entry.read_text())
    data["record"] |= {"recipe": other.recipe, "digest": other.digest}
    write(entry, json.dumps(data))


def half(store: Path) -> None:
    entry = entry_of(store, artifact())
    write(entry, entry.read_text()[:100])


def no_record(store: Path) -> None:
    write(entry_of(store, artifact()), "[]")


def linked(store: Path) -> None:
    file = content(store)
    elsewhere = store.parent / "elsewhere"
    shutil.copy(file, elsewhere)
    file.unlink()
    file.symlink_to(elsewhere)


def pipe(store: Path) -> None:
    file = content(store)
    file.unlink()
    os.mkfifo(file)


def write(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


DAMAGES = {
    cut: "its bytes are 99999, not 100000",
    flip: "it has other bytes than its record says",
    lose: "its bytes are not there",
    of_another: "it is the record of another recipe",
    half: "its record is damaged",
    no_record: "its record is damaged",
    linked: "is a symbolic link",
    pipe: "is no file",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_foreign_is_refused_in_one_line_built_and_put_right(
    there: Here, store: Path, tmp_path: Path, damage
):
    damage(store)
    done = there.step(artifact(), planned=SIZE)
    assert done.returncode == 0, done
    refused, *rest = done.stderr.splitlines()
    assert refused.startswith(f"refused {IT}: {store} has it, but ") and DAMAGES[damage] in refused
    assert [line.split()[0] for line in rest] == ["build", "built"]
    assert there.good()
    third = Here(tmp_path / "third", store)
    assert "taken" in third.step(artifact()).stderr
    assert third.good()


def test_a_damaged_one_without_its_inputs_fails_in_one_line_and_the_next_run_builds_it(
    there: Here, store: Path
):
    flip(store)
    done = there.step(artifact(), planned=SIZE, listed=False)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("refused ") and len(lines) == 2
    assert lines[1].startswith(f"FAILED  {IT}: ") and "Run the same command again" in lines[1]
    assert not (there.path / IT).exists() and not [*there.path.rglob(".*.building")]
    entry = Store(there.settings).look(artifact().digest)
    assert notes.is_refused(entry)  # the plan passes over it
    done = there.step(artifact())
    assert done.returncode == 0 and there.good(), done
    assert not notes.is_refused(Store(there.settings).look(artifact().digest))


NAMES = (
    "../x",
    "a/../../x",
    "/etc/x",
    "..",
    ".",
    "",
    "a//b",
    "./a",
    "a\\b",
    "a\0b",
    "a" * 256,
    "a/" * 600 + "a",
)


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_cannot_write_outside_of_its_artifact(here: Here, store: Path, tmp_path, name):
    made = artifact("results/X/dir", directory=True)
    here.step(made, build='mkdir "$OUT"; echo a >"$OUT/a"')
    entry = entry_of(store, made)
    data = json.loads(entry.read_text())
    files = {name: data["record"]["files"].pop("a")}
    data["record"] |= {"files": files, "sha256": recipes.digest(files)}
    write(entry, json.dumps(data))
    before = {path for path in tmp_path.rglob("x")}
    there = Here(tmp_path / "there", store)
    done = there.step(made, build="exit 1", listed=True)
    assert done.returncode and "refused" in done.stderr, done
    assert {path for path in tmp_path.rglob("x")} == before
    assert not (there.path / made.path).exists()


def test_an_entry_of_a_file_that_is_a_folder_too_is_refused_and_no_store_is_lost(
    here: Here, store: Path, tmp_path
):
    made = artifact("results/X/dir", directory=True)
    here.step(made, build='mkdir "$OUT"; echo a >"$OUT/a"')
    entry = entry_of(store, made)
    data = json.loads(entry.read_text())
    (size, sha), files = data["record"]["files"]["a"], {}
    files = {"a": [size, sha], "a/b": [size, sha]}
    data["record"] |= {"files": files, "sha256": recipes.digest(files), "bytes": 2 * size}
    write(entry, json.dumps(data))
    there = Here(tmp_path / "there", store)
    done = there.step(made, build='mkdir "$OUT"; echo a >"$OUT/a"')
    assert done.returncode == 0 and "refused results/X/dir: " in done.stderr, done
    assert "this run goes on without it" not in done.stderr


def test_a_directory_is_not_taken_where_a_file_is_wanted(here: Here, tmp_path, store: Path):
    made = artifact(directory=True)
    here.step(made, build='mkdir "$OUT"; echo a >"$OUT/a"')
    there = Here(tmp_path / "there", store)
    done = there.step(artifact())
    assert done.returncode == 0 and there.good(), done
    assert f"refused {IT}: {store} has it, but it is a directory there" in done.stderr


def test_what_was_put_since_the_plan_from_other_bytes_is_not_taken(here: Here, there: Here):
    """Where nothing lies here that it would be made from, the plan has compared the entry's."""
    os.chdir(there.path)
    planned = Offer(there.settings, True, SIZE, False, True, {}, inputs={"up": "0" * 64})
    wanted = WantedRecipe.read(Path(handoff.leave(artifact(), planned)))
    said = []
    assert visit.take(wanted, planned, there.path / "made", None, said.append) is None
    assert "it has changed since this run was planned" in said[0]
    assert not (there.path / "made").exists()


def test_an_artifact_made_from_other_bytes_than_are_here_is_built(
    here: Here, there: Here, monkeypatch
):
    up = artifact(UP)
    it = artifact(inputs={"up": up})
    here.step(up)
    here.step(it)
    (there.path / "bytes").write_bytes(b"other" * SIZE)
    there.step(up, take=False, put=False)
    done = there.step(it, planned=SIZE)
    assert done.returncode == 0 and "taken" not in done.stderr, done
    assert recipes.read(IT, there.path).inputs == {"up": recipes.read(UP, there.path).sha256}


def test_what_it_was_made_from_is_known_without_being_there(here: Here, there: Here):
    """A report and a card tell of it by its record."""
    up = artifact(UP)
    it = artifact(inputs={"up": up})
    here.step(up)
    here.step(it)
    done = there.step(it, planned=SIZE, listed=False)
    assert done.returncode == 0, done
    assert recipes.read(UP, there.path) == recipes.read(UP, here.path)
    assert not (there.path / UP).exists()


def test_what_was_only_accepted_as_it_is_is_not_put(here: Here, store: Path):
    up = artifact(UP)
    it = artifact(inputs={"up": up})
    here.step(up, put=False)
    record = recipes.read(UP)
    record.accepted = [{"digest": up.digest, "by": "me", "at": "now", "differs": ["code"]}]
    record.digest = "0" * 64
    recipes.write(record)
    assert here.step(it).returncode == 0
    assert not [*store.rglob("*.json")]


# Deaths, and others at work

CHILD = """
import os, signal, sys
sys.path.insert(0, {scripts!r})
from pathlib import Path
from lib.store.entry import Entry
from lib.store.store import Settings, Store
from lib.record import recipe as recipes
calls, last = 0, int(sys.argv[1])
def die(real):
    def call(*words, **more):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*words, **more)
    return call
for name in ("replace", "link", "fsync", "rename", "mkdir", "chmod", "open"):
    setattr(os, name, die(getattr(os, name)))
record = recipes.read({it!r})
Store(Settings({store!r})).put(Entry(record), Path({it!r}))
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_entry_or_none(here: Here, store: Path):
    here.step(artifact(), put=False)
    text = CHILD.format(scripts=str(SCRIPTS), it=IT, store=str(store))
    killed, whole = 0, 0
    for moment in range(1, 60):
        done = subprocess.run([sys.executable, "-c", text, str(moment)], cwd=here.path)
        entry = Store(here.settings).look(artifact().digest)
        if entry:
            to = here.path / f"taken-{moment}"
            Store(here.settings).take(entry, to)
            assert to.read_bytes() == BUILT
            whole += 1
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        killed += 1
        shutil.rmtree(store / "entries", ignore_errors=True)
    assert killed >= 8 and done.returncode == 0 and whole


def test_two_writers_and_a_reader_at_once_never_see_half_of_anything(here: Here, store: Path):
    here.step(artifact(), put=False)
    text = CHILD.format(scripts=str(SCRIPTS), it=IT, store=str(store))
    text += "\nfor _ in range(60):\n    "
    text += f"Store(Settings({str(store)!r})).put(Entry(record), Path({IT!r}), True)"
    writers = [subprocess.Popen([sys.executable, "-c", text, "0"], cwd=here.path) for _ in range(2)]
    taken = 0
    while any(writer.poll() is None for writer in writers):
        try:
            entry = Store(here.settings).look(artifact().digest)
        except Unreachable:
            continue
        if entry:
            taken += 1
            Store(here.settings).take(entry, here.path / f"taken-{taken}")
    assert taken > 10 and [writer.returncode for writer in writers] == [0, 0]
    assert not [*(store / "parts").iterdir()]


def test_a_store_that_has_gone_is_said_once_and_the_build_goes_on(there: Here, store: Path):
    shutil.rmtree(store)
    first = there.step(artifact(), planned=SIZE)
    assert first.returncode == 0 and there.good(), first
    said = f"store   {store}: No such file or directory: this run goes on without it"
    assert first.stderr.splitlines()[0] == said
    assert not store.exists()  # it may be mounted later
    second = there.step(artifact("results/X/second.bin"))
    assert second.returncode == 0 and "store" not in second.stderr, second


@ROOT_ONLY
def test_a_full_store_is_said_once_and_what_was_built_stays(here: Here, store: Path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", store]
    if not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        first = here.step(artifact())
        second = here.step(artifact("results/X/second.bin"))
        assert not [path for path in (store / "parts").iterdir()]
    finally:
        subprocess.run(["umount", store], check=True)
    assert first.returncode == 0 and here.good(), first
    said = f"store   {store}: No space left on device: what this run builds is not put there"
    assert said in first.stderr.splitlines()
    assert second.returncode == 0 and said not in second.stderr


@pytest.fixture
def shared(tmp_path: Path):
    """A directory that others can reach, with a store for the group TEAM in it."""
    place = Path(tempfile.mkdtemp(prefix="quantmill-store-"))
    place.chmod(0o755)
    (place / "store").mkdir()
    os.chown(place / "store", 0, TEAM)
    (place / "store").chmod(0o2770)
    before = Path.cwd()
    yield place
    os.chdir(before)
    shutil.rmtree(place)


@ROOT_ONLY
def test_two_users_share_a_store_whatever_their_umask(shared: Path):
    os.umask(0o077)
    try:
        ann, bob = (Here(shared / str(user), shared / "store", user) for user in (4001, 4002))
        ann.path.chmod(0o700)
        assert ann.step(artifact()).returncode == 0
        done = bob.step(artifact(), build="exit 1")
        assert done.returncode == 0 and bob.good(), done
        done = bob.step(artifact("results/X/bobs.bin"))
        assert done.returncode == 0 and "store" not in done.stderr, done
        done = ann.step(artifact("results/X/bobs.bin"), build="exit 1")
        assert done.returncode == 0, done
        assert stat.S_IMODE(content(shared / "store").stat().st_mode) == 0o440
        stranger = Here(shared / "4003", shared / "store", 4003)
        stranger.user = 4003
        global TEAM
        team, TEAM = TEAM, 4003
        try:
            done = stranger.step(artifact())
        finally:
            TEAM = team
        assert done.returncode == 0 and "Permission denied" in done.stderr, done
    finally:
        os.umask(0o022)


@ROOT_ONLY
def test_a_store_that_may_only_be_read_is_read_and_said_once(shared: Path):
    admin = Here(shared / "admin", shared / "store")
    (shared / "store").chmod(0o755)
    assert admin.step(artifact()).returncode == 0
    ann = Here(shared / "ann", shared / "store", 4001)
    done = ann.step(artifact(), build="exit 1")
    assert done.returncode == 0 and ann.good(), done
    said = "Permission denied: what this run builds is not put there"
    done = ann.step(artifact("results/X/one.bin"))
    assert done.returncode == 0 and said in done.stderr
    done = ann.step(artifact("results/X/two.bin"))
    assert done.returncode == 0 and said not in done.stderr


# Signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, str]:
    """The files of two pairs of keys."""
    place, found = tmp_path_factory.mktemp("keys"), {}
    for name in ("ours", "theirs"):
        private, public = make_pair(place, name)
        found |= {name: str(private), f"{name}.pub": str(public)}
    return found


@pytest.mark.parametrize("signer", [None, "theirs", "ours"])
def test_where_a_key_is_asked_for_only_what_it_has_signed_is_taken(
    tmp_path: Path, store: Path, keys, monkeypatch, signer
):
    monkeypatch.chdir(tmp_path)
    builder = Here(tmp_path / "builder", store, sign=signer and keys[signer])
    assert builder.step(artifact()).returncode == 0
    here = Here(tmp_path / "here", store, key=keys["ours.pub"], sign=keys["ours"])
    done = here.step(artifact())
    assert done.returncode == 0 and here.good(), done
    if signer == "ours":
        assert done.stderr.startswith("taken")
        return
    why = "is not signed by the key in" if signer else "is not signed, and QUANTMILL_STORE_KEY"
    assert done.stderr.startswith(f"refused {IT}") and why in done.stderr
    anybody = Here(tmp_path / "anybody", store, key=keys["ours.pub"])  # what was put instead
    assert anybody.step(artifact(), build="exit 1").returncode == 0


def test_who_cannot_sign_puts_lost_content_back_and_leaves_the_signed_entry(
    tmp_path: Path, store: Path, keys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ci = Here(tmp_path / "ci", store, key=keys["ours.pub"], sign=keys["ours"])
    assert ci.step(artifact()).returncode == 0
    lose(store)
    reader = Here(tmp_path / "reader", store, key=keys["ours.pub"])
    done = reader.step(artifact())
    assert done.returncode == 0 and "its bytes are not there" in done.stderr, done
    another = Here(tmp_path / "another", store, key=keys["ours.pub"])
    assert another.step(artifact(), build="exit 1").returncode == 0
    write(entry_of(store, artifact()), "[]")
    assert reader.step(artifact("results/X/it.bin")).returncode == 0  # it is there already
    third = Here(tmp_path / "third", store, key=keys["ours.pub"])
    assert third.step(artifact()).returncode == 0 and third.good()
    assert entry_of(store, artifact()).read_text() == "[]"


def test_a_signed_entry_with_other_bytes_in_it_is_refused(tmp_path, store, keys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Here(tmp_path / "builder", store, sign=keys["ours"]).step(artifact())
    file = entry_of(store, artifact())
    envelope = json.loads(file.read_text())
    envelope["payload"] = envelope["payload"][:-8] + "AAAA" + envelope["payload"][-4:]
    write(file, json.dumps(envelope))
    with pytest.raises(Refused, match="was changed since|damaged"):
        Store(Settings(str(store), keys["ours.pub"])).look(artifact().digest)


def test_a_key_that_is_none_ends_a_run_and_takes_nothing_unsigned(there: Here, tmp_path):
    (tmp_path / "no.pem").write_text("no key")
    there.settings = Settings(there.settings.location, str(tmp_path / "no.pem"))
    done = there.step(artifact())
    assert done.returncode == 1 and "no.pem" in done.stderr and "Traceback" not in done.stderr
    assert not (there.path / IT).exists()


# Runs


@pytest.fixture(scope="module")
def stock(built: Project, tmp_path_factory) -> Path:
    """A store in which all of the small project is, put there afterwards."""
    place = tmp_path_factory.mktemp("stock")
    (place / "store").mkdir()
    project = built.copy(place / "project")
    os.environ["QUANTMILL_STORE"] = str(place / "store")
    try:
        said = project.run("store", "--config", "put=true")
    finally:
        del os.environ["QUANTMILL_STORE"]
    assert "Put there: 18 artifacts" in said, said
    return place / "store"


@pytest.fixture
def colleague(built: Project, stock: Path, tmp_path: Path, monkeypatch) -> Project:
    """The small project with its tools, of which nothing is built, beside the store."""
    project = built.copy(tmp_path / "colleague")
    for name in ("results", "resources/models", "resources/corpora", ".snakemake"):
        shutil.rmtree(project / name)
    monkeypatch.setenv("QUANTMILL_STORE", str(stock))
    return project


# What is not taken: links to a file beside them, and what only describes.
HERE = shards("Mix", "mixed", "static") | {
    path for model in FORMS for path in of(model, "report", "card")
}
TAKEN = {path for model, forms in FORMS.items() for path in of(model, *forms)}
TAKEN |= of("Mix", "imatrix", "Q8_0/shards")
TAKEN |= of("Mix", *(f"{form}/evaluation" for form in ["BF16", *FORMS["Mix"]]))


def test_a_colleague_takes_it_all_and_has_the_bytes_of_a_build(built, colleague: Project):
    assert colleague.plan() == TAKEN | HERE  # no merge, no conversion, no source: nothing for it
    plan = colleague.run("plan")
    assert "store 11 artifacts, 7.4 MB: taken from " in plan
    why = colleague.run("why")
    assert "and not built, 7.4 MB:" in why and "gguf/Mix-Q8_0.gguf" in why.split("not built")[1]
    output = colleague.build()
    assert "store: 11 artifacts, 7.4 MB, taken from it" in output
    lines = [line.split() for line in output.splitlines()]
    assert {words[1] for words in lines if words[:1] == ["taken"]} == TAKEN
    for path in (built / "results").rglob("*"):
        name = path.relative_to(built.path)
        if path.is_file() and path.name not in ("index.html", ".snakemake_timestamp"):
            intermediate = not (colleague / name).exists()
            if intermediate:
                assert "safetensors/" in str(name) or "-BF16.gguf" in path.name, name
            else:
                assert (colleague / name).read_bytes() == path.read_bytes(), name
    assert colleague.plan() == NOTHING


def test_a_store_given_taken_away_or_changed_makes_nothing_stale(
    project: Project, stock: Path, tmp_path, monkeypatch
):
    assert project.plan() == NOTHING
    mine = tmp_path / "mine"
    shutil.copytree(stock, mine)
    monkeypatch.setenv("QUANTMILL_STORE", str(mine))
    assert project.plan() == NOTHING
    for file in mine.rglob("*"):
        if file.is_file():
            write(file, "{}")
    assert project.plan() == NOTHING
    shutil.rmtree(mine)
    assert project.plan() == NOTHING
    monkeypatch.delenv("QUANTMILL_STORE")
    assert project.plan() == NOTHING


def test_a_new_quant_takes_the_conversion_and_asks_for_no_merge(colleague: Project):
    project = colleague
    project.quants.append("Q5_K_M")
    quant = of("Mix", "Q5_K_M", "Q5_K_M/shards", "base", "Q5_K_M/evaluation")
    expected = TAKEN | HERE | quant | of("Mix", "BF16")
    texts = {f"resources/corpora/{name}.txt" for name in ("calibration", "evaluation")}
    assert project.plan() == expected | texts


def test_the_plan_takes_nothing_that_was_made_from_other_bytes_than_are_here(
    colleague: Project, monkeypatch
):
    """An importance matrix that another kind of processor has made; it would be stale at once."""
    monkeypatch.chdir(colleague.path)
    quant, static = (f"results/Mix/gguf/Mix-{name}.gguf" for name in ("Q8_0", "static"))
    session = Planned.open(colleague.config)
    assert session.taken(session.find(quant))
    matrix = session.find("results/Mix/imatrix.dat")
    Path("results/Mix").mkdir(parents=True)
    Path(matrix.path).write_text("other")
    record = Record(matrix.path, matrix.recipe, matrix.digest, 5, sha256(Path(matrix.path)))
    record.inputs = session.taking.store.look(matrix.digest).record.inputs
    recipes.write(record)
    session = Planned.open(colleague.config)
    assert session.plan.state(session.find(matrix.path)) is State.FRESH
    assert session.taken(session.find(quant)) is None
    assert session.taken(session.find(static))


def test_verify_rebuild_builds_and_is_not_shown_what_the_store_has(
    project: Project, stock: Path, monkeypatch
):
    monkeypatch.setenv("QUANTMILL_STORE", str(stock))
    output = project.run("verify_rebuild", "--config", "model=Plain")
    assert "built   results/Plain/gguf/Plain-Q4_0.gguf" in output
    assert "came out the same again" in output and "taken" not in output


def test_a_merge_that_two_models_share_is_taken_once_and_linked(colleague: Project, monkeypatch):
    monkeypatch.chdir(colleague.path)
    config = colleague.config
    config["models"]["Twin"] = copy.deepcopy(config["models"]["Mix"])
    session = Planned.open(config)
    mix, twin = (session.find(f"results/{name}/safetensors") for name in ("Mix", "Twin"))
    assert mix.digest == twin.digest
    assert session.taken(mix) and session.taken(twin) is None
    assert session.taking.offer(mix).take and not session.taking.offer(twin).take


def test_what_the_command_line_forces_is_built(colleague: Project, monkeypatch):
    assert of("Two", "BF16", "Q8_0") <= colleague.plan("--forcerun", "quantize")
    monkeypatch.chdir(colleague.path)
    artifact = Planned.open(colleague.config).find("results/Two/gguf/Two-Q8_0.gguf")
    offer = handoff.offer(handoff.path_of(artifact))
    assert offer.listed and not offer.take and offer.put


def test_what_is_found_damaged_when_it_is_taken_is_built_by_the_same_command_again(
    built, colleague: Project, own: Path, monkeypatch
):
    quant = "results/Plain/gguf/Plain-Q4_0.gguf"
    file = own / content_name(sha256(built / quant))
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-1] + b"x")
    monkeypatch.setenv("QUANTMILL_STORE", str(own))
    first = colleague.run(quant, check=False)
    assert f"refused {quant}: {own} has it, but it has other bytes" in first
    assert f"FAILED  {quant}: it was to be taken from the store" in first
    second = colleague.build(quant)
    assert f"built   {quant}" in second and "taken   results/Plain/gguf/Plain-BF16" in second
    assert sha256(colleague / quant) == sha256(built / quant) == sha256(file)


def test_without_the_store_that_was_there_the_same_command_builds(colleague, tmp_path, monkeypatch):
    expected = colleague.plan()
    monkeypatch.setenv("QUANTMILL_STORE", str(tmp_path / "nowhere"))
    command = colleague.command("--dry-run")
    done = subprocess.run(command, capture_output=True, text=True)
    said = f"store   {tmp_path}/nowhere: No such file or directory: this run goes on without it"
    assert (done.stdout + done.stderr).splitlines().count(said) == 1
    assert colleague.plan() > expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("my/store", "give the whole path"),
        ("s3://key:secret@bucket/store", "a URL with credentials"),
    ],
)
def test_a_mistaken_store_is_one_line_without_secrets(colleague, monkeypatch, value, said):
    monkeypatch.setenv("QUANTMILL_STORE", value)
    output = colleague.run("--dry-run", check=False)
    assert said in output and "Traceback" not in output and "secret" not in output


@ROOT_ONLY
def test_an_owner_who_is_not_root_can_build_again_what_is_linked_to_the_store(
    built: Project, shared: Path, stock: Path, monkeypatch
):
    """Snakemake refuses to replace what is write-protected."""
    project = built.copy(shared / "project")
    (shared / "store").chmod(0o755)
    path = project / "results/Two/gguf/Two-Q8_0.gguf"
    path.chmod(0o444)
    os.link(path, shared / "linked")
    project.model("Two")["gguf"]["quants"] = [{"name": "Q8_0", "type": "Q5_0"}]
    project.write()
    subprocess.run(["chown", "-R", str(NOBODY), project.path], check=True)
    command = [*AS_NOBODY, shlex.join([others_python(), *project.command("--dry-run")[1:]])]
    env = os.environ | {"HOME": str(project.path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "Write-protected" not in done.stdout + done.stderr, done
    assert re.search("quantize +1", done.stdout)
    # It is the store's own file: who may write to one may write to the other.
    assert stat.S_IMODE((shared / "linked").stat().st_mode) == 0o444


def test_what_never_comes_out_the_same_is_not_shared_unless_the_config_says_so(
    built: Project, tmp_path, monkeypatch
):
    config = {
        "corpora": built.config["corpora"],
        "models": {"M": {"source": "./m/prose", "exl2": {"bits": [3]}, "evaluate": {"chunks": 2}}},
    }
    shutil.copytree(built / "m", tmp_path / "m")
    shutil.copytree(built / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for more, expected in (({}, False), ({"store": "all"}, True)):
        session = Planned.open(copy.deepcopy(config | more))
        for path in ("exl2/3.0bpw", "exl2/measurement.json", "evaluation/3.0bpw.json"):
            made = session.find(f"results/M/{path}")
            assert session.taking.is_shared(made) == expected, path
        assert not session.taking.is_shared(session.find("results/M/report/quality.csv"))
        assert not session.taking.is_shared(session.find("resources/llama.cpp"))


# The store itself


def ask(project: Project, store: Path, *options: str) -> subprocess.CompletedProcess:
    """Ask ask_store.py, without Snakemake's start."""
    config = project.path / "asked.json"
    said = dict(option.split("=") for option in options)
    config.write_text(json.dumps(project.config | said))
    command = [sys.executable, SCRIPTS / "ask_store.py", "--config", config]
    env = os.environ | {"QUANTMILL_STORE": str(store)}
    return subprocess.run(command, cwd=project.path, env=env, capture_output=True, text=True)


@pytest.fixture
def own(stock: Path, tmp_path: Path) -> Path:
    """A copy of the store, to be pruned and damaged."""
    return Path(shutil.copytree(stock, tmp_path / "own"))


def test_the_store_tells_what_it_has_and_what_of_this_config(colleague: Project, own: Path):
    del colleague.config["models"]["Two"]
    lines = ask(colleague, own).stdout.splitlines()
    assert lines[0].startswith(f"{own}: 18 entries, ")
    assert lines[1] == "of this config: 15 of 18 artifacts that it can share"
    rows = {line.split()[0]: line.split()[-1] for line in lines[2:]}
    assert rows["results/Mix/gguf/Mix-Q8_0.gguf"] == "*"
    assert rows["results/Two/gguf/Two-Q8_0.gguf"] == "d"  # the end of its age


def test_pruning_shows_first_and_takes_what_this_config_does_not_want(colleague, own: Path):
    del colleague.config["models"]["Two"]
    before = {path for path in own.rglob("*") if path.is_file()}
    shown = ask(colleague, own, "unasked=true").stdout
    assert "3 of 18 entries" in shown and "Nothing is removed yet" in shown
    assert {path for path in own.rglob("*") if path.is_file()} == before
    done = ask(colleague, own, "unasked=true", "yes=true").stdout
    assert "Removed, 7." in done, done
    assert ask(colleague, own, "check=true").returncode == 0
    assert "15 entries" in ask(colleague, own).stdout


def test_pruning_by_age_and_size_leaves_what_is_young_and_the_newest(colleague, own: Path):
    entries = sorted((own / "entries").rglob("*.json"))
    assert "0 of 18" in ask(colleague, own, "keep=1d", "yes=true").stdout
    shown = ask(colleague, own, "size=0G", "yes=true").stdout
    assert "18 of 18" in shown and not [path for path in own.rglob("*") if path.is_file()]
    assert entries


def test_content_that_two_entries_need_stays_while_one_of_them_does(here: Here, monkeypatch):
    one, two = artifact("results/X/one.bin"), artifact("results/X/two.bin")
    for each in (one, two):
        here.step(each)
    kept, sizes = everything_in(Store(here.settings), monkeypatch)
    assert len(kept) == 2 and len(sizes) == 1
    assert unneeded(kept[:1], kept[1:], [], sizes) == []
    assert unneeded([], kept, [], sizes) == list(sizes)
    assert unneeded([], kept, [recipes.read(one.path)], sizes) == []  # it is cold here
    assert unneeded([], [], [], sizes) == []  # somebody may be putting it now


def everything_in(store: Store, monkeypatch) -> tuple[list[Kept], dict[str, Found]]:
    """The entries, and the content, as `snakemake store` sees them with a config of nothing."""
    monkeypatch.setattr(ask_store, "shared", lambda session: [])
    return ask_store.read(store, None), dict(store.contents())


def test_what_is_not_for_us_is_neither_damaged_nor_without_content(
    here: Here, store: Path, keys, monkeypatch, capsys
):
    monkeypatch.setattr(ask_store, "GRACE_S", -60)
    here.step(artifact())
    entry, shop = entry_of(store, artifact()), Store(Settings(str(store), keys["ours.pub"]))

    def needed() -> bool:
        kept, sizes = everything_in(shop, monkeypatch)
        assert kept[0].entry is None
        return unneeded(kept, [], [], sizes) == []

    assert needed()  # what is not signed
    assert ask_store.check(shop, *everything_in(shop, monkeypatch), yes=True) == 0
    said = capsys.readouterr().out
    assert f"not to be taken here is 1:\n  {artifact().digest}.json  is not signed" in said
    assert entry.exists()
    document = entry.read_text()
    write(entry, document.replace('"quantmill_store":1', '"quantmill_store":2'))
    shop = Store(here.settings)
    assert needed()  # what another version has written
    assert ask_store.check(shop, *everything_in(shop, monkeypatch), yes=True) == 0
    assert entry.exists()
    write(entry, document[:100])
    assert not needed()  # what is damaged
    assert ask_store.check(shop, *everything_in(shop, monkeypatch), yes=True) == 0
    assert not entry.exists()


def prune(store: Store, monkeypatch) -> None:
    """Remove all entries, as `snakemake store --config size=0G yes=true` does."""
    options = SimpleNamespace(keep=None, size="0G", unasked=None, yes=True)
    ask_store.prune(SimpleNamespace(options=options), store, *everything_in(store, monkeypatch))


def test_what_is_put_while_another_prunes_keeps_its_content(here: Here, store: Path, monkeypatch):
    """Its entry is written after the pruner has read the entries, and the content was there."""
    here.step(artifact("results/X/one.bin"))
    real, two = Directory.aside, artifact("results/X/two.bin")

    def aside(place: Directory, name: str) -> str | None:
        if name.startswith("content") and not entry_of(store, two).exists():
            assert "built" in here.step(two).stderr
        return real(place, name)

    monkeypatch.setattr(Directory, "aside", aside)
    prune(Store(here.settings), monkeypatch)
    entries = list(Store(here.settings).entries())
    assert [digest for digest, _ in entries] == [two.digest]
    assert Store(here.settings).look(two.digest)
    monkeypatch.setattr(Directory, "aside", real)
    prune(Store(here.settings), monkeypatch)
    assert not [path for path in store.rglob("*") if path.is_file()]


def test_an_entry_that_is_renewed_while_another_prunes_stays(here: Here, store: Path, monkeypatch):
    """So does a file that goes from the disk because the store has it."""
    here.step(artifact())
    shop = Store(here.settings)
    kept, sizes = everything_in(shop, monkeypatch)
    time.sleep(0.05)  # the dates of files are told in steps of some milliseconds
    shop.renew(artifact().digest)
    options = SimpleNamespace(keep=None, size="0G", unasked=None, yes=True)
    ask_store.prune(SimpleNamespace(options=options), shop, kept, sizes)
    assert shop.look(artifact().digest)


def test_a_check_reads_every_byte_and_removes_what_is_damaged_if_told(built, colleague, own: Path):
    assert ask(colleague, own, "check=true").returncode == 0
    file = own / content_name(sha256(built / "results/Plain/gguf/Plain-Q4_0.gguf"))
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    done = ask(colleague, own, "check=true")
    assert done.returncode == 1 and "1 damaged, 0 missing" in done.stdout, done
    assert ask(colleague, own, "check=true", "yes=true").returncode == 0
    done = ask(colleague, own, "check=true")
    assert done.returncode == 0 and "17 entries" in done.stdout, done


# S3


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """s3://bucket/team on a server of this machine, and the environment that reaches it."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: requirements-s3.txt")
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    said = tmp_path_factory.mktemp("s3") / "server.txt"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with said.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    # It takes a free port and says which; on a machine under load that takes a minute and more.
    while not (address := re.search(r"Running on (http://\S+)", said.read_text())):
        assert server.poll() is None, said.read_text()
        time.sleep(0.1)
    env = {
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "quite-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address[1],
    }
    before = dict(os.environ)
    os.environ.update(env)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of the server of another file's tests
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/team"
    server.terminate()
    server.wait()
    os.environ.clear()
    os.environ.update(before)


def test_s3_a_step_puts_and_another_takes_and_refuses_what_is_damaged(
    bucket, tmp_path, monkeypatch
):
    import s3fs

    monkeypatch.chdir(tmp_path)
    here, there = (Here(tmp_path / name, bucket) for name in ("here", "there"))
    done = here.step(artifact())
    assert done.returncode == 0 and here.good(), done
    done = there.step(artifact(), build="exit 1")
    assert done.returncode == 0 and there.good() and "taken" in done.stderr, done
    fs = s3fs.S3FileSystem()
    sha = recipes.read(IT, here.path).sha256
    fs.pipe_file(f"{bucket}/{content_name(sha)}", b"x" * SIZE)
    third = Here(tmp_path / "third", bucket)
    done = third.step(artifact())
    assert done.returncode == 0 and third.good() and done.stderr.startswith("refused"), done
    fourth = Here(tmp_path / "fourth", bucket)
    assert fourth.step(artifact(), build="exit 1").returncode == 0
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"quite-secret" not in path.read_bytes(), path


def test_s3_a_bucket_that_is_not_there_is_said_and_nothing_is_lost(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = Here(tmp_path / "here", "s3://nowhere/team")
    done = here.step(artifact())
    assert done.returncode == 0 and here.good(), done
    assert "bucket does not exist: what this run builds is not put there" in done.stderr


def test_s3_other_bytes_of_the_same_size_are_not_what_was_built(bucket, tmp_path, monkeypatch):
    """By the word of a size alone nothing may be deleted here."""
    import s3fs

    monkeypatch.chdir(tmp_path)
    here = Here(tmp_path / "here", f"{bucket}/sizes")
    here.step(artifact())
    shop, record = Store(here.settings), recipes.read(IT, here.path)
    assert visit.sees(shop, record)
    s3fs.S3FileSystem().pipe_file(f"{bucket}/sizes/{content_name(record.sha256)}", b"x" * SIZE)
    with pytest.raises(Refused, match="has other bytes"):
        visit.sees(shop, record)
    assert visit.sees(shop, record, brought=True)


def test_s3_of_two_writers_of_one_entry_the_first_one_stays(bucket):
    place = Store(Settings(bucket)).place
    place.write("entries/zz/one.json", b"first", again=False)
    place.write("entries/zz/one.json", b"second", again=False)
    assert place.read("entries/zz/one.json") == b"first"


def test_s3_a_colleague_takes_all_of_a_project(bucket, built, colleague, monkeypatch):
    monkeypatch.setenv("QUANTMILL_STORE", f"{bucket}/all")
    copied = built.copy(colleague.path.with_name("copied"))
    assert "Put there: 18 artifacts" in copied.run("store", "--config", "put=true")
    assert colleague.plan() == TAKEN | HERE
    target = sorted(of("Mix", "Q8_0", "imatrix") | of("Mix", "Q8_0/shards"))
    output = colleague.build(*target)
    assert output.count("taken   ") == 3, output
    for name in of("Mix", "Q8_0", "imatrix"):
        assert sha256(colleague / name) == sha256(built / name)
    asked = colleague.run("store", "--config", "check=true")
    assert "18 entries" in asked and "every byte is what its entry says" in asked

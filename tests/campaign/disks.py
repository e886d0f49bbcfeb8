"""File systems that fill up, become read-only, or lose what was not flushed, at random moments.

Real ones, small: tmpfs, and XFS and ext4 on loop devices. Root only; without root there are no
cases. After each fault the file system is mended, and the same command must give what an
undisturbed build gives. A crash of the machine is the file system's own shutdown without a flush of
its log: what was not flushed before is gone when it is mounted again.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from campaign import Case
from campaign.builds import Run, after, awaited, failed, failed_steps, in_rounds, prepared, wait

BLOCK = 4096  # bytes
SIZE = "300M"  # of a file system with room for all


def cases(random: Random, work: Path) -> Iterator[Case]:
    if os.getuid() or not shutil.which("mount"):
        return
    new, expected, seconds = prepared()
    used = taken(new.with_name("whole"))
    kinds = {"full": full, "nearly full": nearly_full, "read-only": read_only}
    kinds["few files"] = few_files
    if shutil.which("xfs_io"):
        kinds["crash"] = crash
    if shutil.which("mkfs.btrfs"):
        kinds["quota"] = quota
    for number, name in in_rounds(random, kinds):
        yield from kinds[name](random, new, work / f"disk{number}", expected, used, seconds)


def taken(top: Path) -> int:
    """Bytes that the files of a directory take, in blocks."""
    return sum(-(-path.lstat().st_size // BLOCK) * BLOCK for path in top.rglob("*"))


def full(random, new, here, expected, used, seconds) -> Iterator[Case]:
    """A disk that is too small from the start, by chance at any step."""
    start = taken(new)
    size = random.randint(start + 300_000, max(start + 600_000, used))
    with mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", here):
        shutil.copytree(new, here, symlinks=True, dirs_exist_ok=True)
        run = Run(here, output=here.with_suffix(".txt"))
        fault = failed(run, here)
        mount("-o", f"remount,size={SIZE}", here)
        kind = f"a disk too small from the start: {failed_steps(run)}"
        yield Case(kind, fault or after(here, expected))


def few_files(random, new, here, expected, used, seconds) -> Iterator[Case]:
    """A disk with room for so many files and no more."""
    start = sum(1 for _ in new.rglob("*"))
    whole = sum(1 for _ in new.with_name("whole").rglob("*"))
    files = random.randint(start + 20, start + whole)
    with mounted("-t", "tmpfs", "-o", f"size={SIZE},nr_inodes={files}", "tmpfs", here):
        shutil.copytree(new, here, symlinks=True, dirs_exist_ok=True)
        fault = failed(Run(here, output=here.with_suffix(".txt")), here)
        mount("-o", "remount,nr_inodes=100000", here)
        yield Case("a disk with room for few files", fault or after(here, expected))


def quota(random, new, here, expected, used, seconds) -> Iterator[Case]:
    """A quota (btrfs) that is used up at any step."""
    start = taken(new)
    with image(here, "mkfs.btrfs", "-q", "-f"):
        subprocess.run(["btrfs", "quota", "enable", here], check=True)
        place = here / "place"
        subprocess.run(["btrfs", "-q", "subvolume", "create", place], check=True)
        shutil.copytree(new, place, symlinks=True, dirs_exist_ok=True)
        subprocess.run(["sync", "-f", place], check=True)
        size = start + random.randint(300_000, used)
        subprocess.run(["btrfs", "qgroup", "limit", str(size), place], check=True)
        fault = failed(Run(place, output=here.with_suffix(".txt")), place)
        subprocess.run(["btrfs", "qgroup", "limit", "none", place], check=True)
        yield Case("a quota that is used up (btrfs)", fault or after(place, expected))


def nearly_full(random, new, here, expected, used, seconds) -> Iterator[Case]:
    """Something else fills the disk at a random moment, up to a few blocks."""
    with mounted("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", here):
        shutil.copytree(new, here, symlinks=True, dirs_exist_ok=True)
        run = Run(here, output=here.with_suffix(".txt"))
        wait(random, run, seconds)
        balloon = here / "balloon"
        fill(balloon, leave=BLOCK * random.randint(0, 20))
        fault = failed(run, here)
        balloon.unlink()
        yield Case("a disk that others fill at a random moment", fault or after(here, expected))


def fill(balloon: Path, leave: int) -> None:
    """Make a file that takes all but `leave` bytes of its disk, while others write to it too."""

    def free() -> int:
        disk = os.statvfs(balloon.parent)
        return disk.f_bavail * disk.f_frsize

    with balloon.open("wb") as file:
        while (size := free() - leave) > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                break
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise  # else they wrote between the two calls


def read_only(random, new, here, expected, used, seconds) -> Iterator[Case]:
    """The results may be read and not written."""
    shutil.copytree(new, here, symlinks=True)
    results = here / "results"
    mount("--bind", results, results)
    mount("-o", "remount,bind,ro", results)
    fault = failed(Run(here), here)
    subprocess.run(["umount", results], check=True)
    yield Case("results that may not be written", fault or after(here, expected))
    shutil.rmtree(here)


def crash(random, new, here, expected, used, seconds) -> Iterator[Case]:
    """The machine loses its power: nothing reaches the disk any more, not even the log."""
    system = random.choice([name for name in ("xfs", "ext4") if shutil.which(f"mkfs.{name}")])
    with image(here, f"mkfs.{system}", "-q", "-f" if system == "xfs" else "-F"):
        shutil.copytree(new, here, symlinks=True, dirs_exist_ok=True)
        subprocess.run(["sync", "-f", here], check=True)
        run = Run(here, output=here.with_suffix(".txt"))
        wait(random, run, seconds)
        subprocess.run(["xfs_io", "-x", "-c", "shutdown", here], check=True)
        run.kill()
        remounted(here)
        yield Case(f"a crash of the machine ({system}, nothing flushed)", after(here, expected))


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    """A file system in the directory that is the last word, which is made and removed."""
    here = Path(words[-1])
    here.mkdir()
    mount(*words)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", here], check=False)
        here.rmdir()


@contextmanager
def image(here: Path, *make: str) -> Iterator[None]:
    """A file system of its own in a file beside `here`. make: the command that makes it."""
    file = here.with_suffix(".img")
    with file.open("wb") as empty:
        empty.truncate(400 << 20)
    subprocess.run([*make, file], check=True, capture_output=True)
    with mounted("-o", "loop", file, here):
        yield
    file.unlink()


def remounted(here: Path) -> None:
    """Unmount the image at `here`, and mount it again, which replays its log."""
    awaited(lambda: subprocess.run(["umount", here], capture_output=True).returncode == 0)
    mount("-o", "loop", here.with_suffix(".img"), here)

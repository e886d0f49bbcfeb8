"""A network file system: sshfs, by one client or two, with files that show late and no hard links.

Each client is a mount of its own of the same directory, with a cache of names and dates of 20
seconds, and with locks that the other does not see. The two have the same path, in two mount
namespaces, as on two hosts. Root only, with sshfs and OpenSSH's sftp-server; else there are no
cases.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from campaign import Case
from campaign.builds import Run, after, awaited, failed, in_rounds, prepared, succeeded, wait

SERVER = "/usr/lib/openssh/sftp-server"
OPTIONS = "passive,disable_hardlink,no_contain_symlinks,dcache_timeout=20"
LONG = 600  # seconds within which a build ends whose steps are jobs
# Given to Snakemake as the command that submits a job: it runs on the other client.
SUBMIT = """\
#!/bin/bash
nsenter --target {other} --mount setsid bash "$1" </dev/null >/dev/null 2>&1 &
echo $!
"""


def why_not() -> str | None:
    """The reason why no such file system can be had here; None if one can."""
    if os.getuid():
        return "only root can mount"
    if not shutil.which("sshfs") or not Path(SERVER).exists():
        return "sshfs or sftp-server is not installed (Debian: sshfs openssh-sftp-server)"
    return None


def cases(random: Random, work: Path) -> Iterator[Case]:
    if why_not():
        return
    new, expected, seconds = prepared()
    kinds = {
        "killed on one client, gone on with on another": killed,
        "the server goes away": gone,
        "steps on another client, which sees files late": elsewhere,
        "runs of two clients at once": two_runs,
    }
    for number, name in in_rounds(random, kinds):
        served, here = work / f"served{number}", work / f"run{number}"
        shutil.copytree(new, served, symlinks=True)
        here.mkdir()
        fault = kinds[name](random, served, here, seconds)
        with mounted(served, here):
            yield Case(name, fault or after(here, expected))
        shutil.rmtree(served)


def killed(random: Random, served: Path, here: Path, seconds: float) -> str | None:
    with mounted(served, here):
        run = Run(here, output=here.with_suffix(".txt"))
        wait(random, run, 2 * seconds)
        run.kill()
        return failed(run, here)


def gone(random: Random, served: Path, here: Path, seconds: float) -> str | None:
    with mounted(served, here) as server:
        run = Run(here, output=here.with_suffix(".txt"))
        wait(random, run, 2 * seconds)
        server.kill()
        return run.wait()


def elsewhere(
    random: Random, served: Path, here: Path, seconds: float, *targets: str
) -> str | None:
    submit = here.with_suffix(".sh")
    with mounted(served, here), another_host() as other, mounted(served, here, other):
        submit.write_text(SUBMIT.format(other=other))
        submit.chmod(0o755)
        how = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", str(submit)]
        how += ["--latency-wait", "60", "--jobs", "2"]
        return succeeded(Run(here, *targets, *how, output=here.with_suffix(".txt"), patience=LONG))


def two_runs(random: Random, served: Path, here: Path, seconds: float) -> str | None:
    with mounted(served, here), another_host() as other, mounted(served, here, other):
        first = Run(here, output=here.with_suffix(".txt"))
        wait(random, first, seconds)
        second = Run(here, output=here.with_suffix(".2.txt"), before=inside(other))
        return failed(first, here) or failed(second, here)


def inside(host: int) -> list[str]:
    """The words before a command that let it run in another host's mount namespace."""
    return ["nsenter", "--target", str(host), "--mount"]


@contextmanager
def another_host() -> Iterator[int]:
    """A process in a mount namespace of its own; its number."""
    holder = subprocess.Popen(["unshare", "--mount", "sleep", "infinity"])
    own = os.readlink("/proc/self/ns/mnt")
    awaited(lambda: os.readlink(f"/proc/{holder.pid}/ns/mnt") != own)
    try:
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


@contextmanager
def mounted(served: Path, here: Path, host: int | None = None) -> Iterator[subprocess.Popen]:
    """A client of the directory `served` at `here`, on this host or another; the server."""
    ours, theirs = socket.socketpair()
    words = inside(host) if host else []
    mounts = Path(f"/proc/{host or 'self'}/mountinfo")
    before = mounts.read_text().count(f" {here} ")
    server = subprocess.Popen([SERVER], stdin=ours, stdout=ours)
    command = [*words, "sshfs", "-f", "-o", OPTIONS, f"server:{served}", here]
    client = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
    for end in (ours, theirs):
        end.close()
    assert awaited(lambda: mounts.read_text().count(f" {here} ") > before)
    try:
        yield server
    finally:
        subprocess.run([*words, "umount", "--lazy", here], check=False, capture_output=True)
        for process in (client, server):
            process.kill()
            process.wait()

"""A small project that is built again and again, each time with something that disturbs it.

What must hold afterwards is checked by `half_made` and `finished`.
"""

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import inotify_simple
import psutil
import yaml

import fresh
from campaign.watched import status_of
from lib.record import recipe as recipes
from lib.record.layout import SNAKEMAKE_MARK
from project import CONFIG, sha256, words
from tiny_models import make_models, make_texts

FORMS = {"imatrix": {"chunks": 2, "context": 128}, "quants": ["Q8_0", "Q4_K_M"]}
SMALL = {
    "corpora": CONFIG["corpora"],
    "models": {
        "Small": {
            "source": "./m/prose",
            "gguf": {**FORMS, "split_max_size": "1M"},
            "evaluate": {"context": 128, "chunks": 2},
        }
    },
}
PATIENCE = 120  # seconds after which a run that should have ended is said to hang
WRITTEN = inotify_simple.flags.MODIFY | inotify_simple.flags.CLOSE_WRITE
NEW = inotify_simple.flags.CREATE
SEEN = WRITTEN | NEW | inotify_simple.flags.MOVED_TO | inotify_simple.flags.DELETE
DIRECTORY = inotify_simple.flags.ISDIR


class Watch:
    """What happens to the files of directories, also of those that appear meanwhile.

    count: of events. visible: files that were written under a name that is not hidden.
    """

    def __init__(self, *tops: Path):
        self.count, self.visible = 0, set()
        self._inotify, self._paths = inotify_simple.INotify(), {}
        for top in tops:
            self._add(top)
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        self._inotify.close()

    def _add(self, directory: Path) -> None:
        try:
            self._paths[self._inotify.add_watch(directory, SEEN)] = directory
            below = [
                path for path in directory.iterdir() if path.is_dir() and not path.is_symlink()
            ]
        except OSError:  # it is gone already
            return
        for path in below:
            self._add(path)

    def _read(self) -> None:
        try:
            while not self._inotify.closed:
                for event in self._inotify.read(timeout=200):
                    self._note(event)
        except (OSError, ValueError):  # closed
            return

    def _note(self, event: inotify_simple.Event) -> None:
        self.count += 1
        directory = self._paths.get(event.wd)
        if directory is None or not event.name:
            return
        path = directory / event.name
        if event.mask & DIRECTORY:
            if event.mask & NEW:
                self._add(path)
        elif event.mask & WRITTEN and not any(part.startswith(".") for part in path.parts):
            self.visible.add(str(path))


class Run:
    """Snakemake in a process group of its own."""

    def __init__(
        self,
        here: Path,
        *arguments: str,
        output: Path | None = None,
        variables: Mapping[str, str] | None = None,
        anew: bool = False,
        before: Sequence[str] = (),
        patience: float = PATIENCE,
    ):
        """output: the file of what it writes; by default output.txt in `here`. variables: of the
        environment of its steps; of all its processes if it is to be started anew, and not as a
        fork of this process. before: words before its command, which starts it anew. patience: the
        seconds after which it should have ended."""
        self.file, self.status = output or here / "output.txt", None
        self.patience = patience
        given = [*words(here), *arguments, "--configfile", "c.yaml"]
        with self.file.open("w") as file, mock.patch.dict(os.environ, variables or {}):
            if anew or before:
                streams = {"stdout": file, "stderr": subprocess.STDOUT}
                command = [*before, sys.executable, "-m", "snakemake", *given]
                child = subprocess.Popen(command, cwd=here, start_new_session=True, **streams)
                self.process, self._child = psutil.Process(child.pid), child
            else:
                self.process = psutil.Process(fork(given, file.fileno(), here))

    @property
    def ended(self) -> bool:
        if self.status is None:
            number, status = os.waitpid(self.process.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if number else None
        return self.status is not None

    @property
    def output(self) -> str:
        return self.file.read_text(errors="replace")

    def processes(self, whom: str) -> list[psutil.Process]:
        """The running processes that are meant by these words of SIGNALS."""
        try:
            below = self.process.children(recursive=True)
            if whom == "Snakemake alone":
                return [self.process]
            if whom == "all processes":
                return [self.process, *below]
            shells = [process for process in below if process.name() == "bash"]
            found = shells if whom == "a step's shell" else [p for p in below if p not in shells]
            return found[-1:]
        except psutil.Error:
            return []

    def send(self, number: signal.Signals, whom: str = "all processes") -> None:
        """Send a signal to processes."""
        for process in self.processes(whom):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """Kill all its processes, and wait for the end."""
        self.send(signal.SIGKILL)
        awaited(lambda: self.ended)

    def wait(self) -> str | None:
        """Wait for its end; what is wrong if it does not come."""
        if awaited(lambda: self.ended, self.patience):
            return None
        self.kill()
        return f"no end within {self.patience} s: {last_line(self.output)}"


def fork(arguments: list[str], output: int, directory: Path) -> int:
    """Start Snakemake in a fork of this process, which has imported it; its process number.

    output: the descriptor that it writes to. directory: in which it runs, in a process group of its
    own.
    """
    import snakemake.cli

    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        os.chdir(directory)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", closefd=False)
        snakemake.cli.main(arguments)
    except SystemExit as end:
        status = status_of(end)
        if isinstance(end.code, str):
            print(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the parent's may be unwound here, also if the disk is full.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


@cache
def prepared() -> tuple[Path, dict[str, str], float]:
    """(a directory to be built, the contents of an undisturbed build, how many seconds it took).

    That build is in `whole` beside the directory. Built once a process.
    """
    top = tempfile.TemporaryDirectory(prefix="campaign-")
    atexit.register(top.cleanup)
    new, whole = Path(top.name, "new"), Path(top.name, "whole")
    make_models(new / "m", "prose")
    make_texts(new / "data", 100)
    (new / "c.yaml").write_text(yaml.safe_dump(SMALL))
    shutil.copytree(new, whole)
    began, run = time.monotonic(), Run(whole)
    assert run.wait() is None and run.status == 0, run.output
    seconds = time.monotonic() - began
    for path in (whole / "results").rglob("*"):
        if path.is_dir() and path.parent.name != "shards":
            # So that each is watched from the start.
            (new / path.relative_to(whole)).mkdir(parents=True, exist_ok=True)
    shutil.copytree(whole / "resources/llama.cpp", new / "resources/llama.cpp", symlinks=True)
    return new, contents(whole), seconds


def succeeded(run: Run) -> str | None:
    """Wait for the end of a run; what is wrong unless it ends well."""
    if fault := run.wait():
        return fault
    return f"status {run.status}: {last_line(run.output)}" if run.status else None


def failed(run: Run, here: Path) -> str | None:
    """Wait for the end of a run, good or bad; what is wrong with how it ended and what it left."""
    if fault := run.wait():
        return fault
    if "Traceback" in run.output and "site-packages" not in run.output:
        return f"a traceback: {last_line(run.output)}"
    return half_made(here, None)


def failed_steps(run: Run) -> str:
    """What the steps that failed in a run would have made; "Snakemake" if no step did."""
    made = set(re.findall(r"^FAILED  (?:results/Small/|resources/)?(\S+?)[,:] ", run.output, re.M))
    return ", ".join(sorted(made)) or "Snakemake"


def after(here: Path, expected: dict[str, str], **how: Any) -> str | None:
    """What does not hold once nothing disturbs any more: see `finished`."""
    if fault := half_made(here, None):
        return fault
    watch = Watch(here / "results")
    try:
        return finished(here, watch, expected, **how)
    finally:
        watch.close()


def in_rounds(random: Random, kinds: Iterable[str]) -> Iterator[tuple[int, str]]:
    """(number from 1, kind) without end: all kinds, and again, each round in another order."""
    kinds, numbers = list(kinds), count(1)
    while True:
        for kind in random.sample(kinds, len(kinds)):
            yield next(numbers), kind


def wait(random: Random, run: Run, seconds: float) -> None:
    """Wait for a random moment within so many seconds, or for the end of a run."""
    until = time.monotonic() + random.uniform(0, seconds)
    awaited(lambda: run.ended or time.monotonic() > until)


def awaited(happened: Callable[[], object], seconds: float = 60) -> object:
    """What `happened` returns as soon as that is true; None after so many seconds."""
    until = time.monotonic() + seconds
    while not (found := happened()):
        if time.monotonic() > until:
            return None
        time.sleep(0.002)
    return found


def half_made(here: Path, watch: Watch | None) -> str | None:
    """A file that was written in place, or that has other bytes than its record; None: none."""
    if watch and watch.visible:
        return f"written under its final name: {', '.join(sorted(watch.visible)[:3])}"
    for file in here.glob("results/**/*.recipe.json"):
        name = file.relative_to(here).as_posix().removesuffix(recipes.SUFFIX)
        try:
            record = json.loads(file.read_text())
        except ValueError:
            return f"{file} is no whole record"
        parts = {f"{name}/{part}": sha for part, (_, sha) in record.get("files", {}).items()}
        for path, sha in (parts or {name: record["sha256"]}).items():
            # Links have no digest; what nothing needs any more may be gone.
            if (here / path).is_file() and sha and sha256(here / path) != sha:
                return f"{path} has other bytes than its record says"
    return None


def finished(here: Path, watch: Watch, expected: dict[str, str], **how: Any) -> str | None:
    """Run the command undisturbed; what is not as if nothing had happened. how: of `Run`."""
    if fault := succeeded(Run(here, **how)) or half_made(here, watch):
        return fault
    made = contents(here)
    if other := sorted(n for n in expected.keys() | made.keys() if expected.get(n) != made.get(n)):
        return f"not the bytes of an undisturbed build: {', '.join(other[:3])}"
    tops = (here / "results", here / "resources")
    if left := [path for top in tops for path in top.rglob(".*.building")]:
        return f"left behind: {left[0]}"
    if left := processes_in(here):
        return f"still running: {left[0].cmdline()}"
    done = fresh.snakemake([*words(here), "--dry-run", "--configfile", str(here / "c.yaml")])
    if done.returncode or "Nothing to be done" not in done.stdout:
        return f"not done after all: {last_line(done.stdout)}"
    return None


def contents(here: Path) -> dict[str, str]:
    """{file under results: its sha256} but for records, which tell of times, and the gallery."""
    files = (path for path in (here / "results").rglob("*") if path.is_file())
    return {
        path.relative_to(here).as_posix(): sha256(path)
        for path in files
        if not path.name.endswith(recipes.SUFFIX)
        and path.name not in ("index.html", SNAKEMAKE_MARK)
    }


def processes_in(directory: Path) -> list[psutil.Process]:
    """The processes that work in a directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == directory and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"

"""Programs of ours in forks that are watched: what they say, take, and write."""

import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECONDS = 5
"""Of processor time within which there is an answer."""
MEMORY = 1 << 30
"""Bytes that a program may take beside what it has loaded."""
HUNG = 60
"""Seconds after which a program is taken for one that never ends."""
# What moves a terminal's cursor, or worse; what a line or a column ends with is none of it.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Ended(NamedTuple):
    """How a fork has ended. status: its exit status; negative: the signal. seconds: of processor
    time. taken: bytes of memory beside what it began with."""

    status: int
    output: str
    seconds: float
    taken: int


def watched(call: Callable[[], object], directory: Path) -> Ended:
    """Call a function that ends with SystemExit in a fork, in a directory."""
    began = _resident()
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        if (child := os.fork()) == 0:
            _inside(call, directory, file.fileno())
        until = time.monotonic() + HUNG
        while not (found := os.wait4(child, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                found = os.wait4(child, 0)
                break
            time.sleep(0.002)
        _, status, used = found
        file.seek(0)
        output = file.read().decode(errors="backslashreplace")
    taken = max(0, used.ru_maxrss * 1024 - began)
    spent = used.ru_utime + used.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), output, spent, taken)


def _inside(call: Callable[[], object], directory: Path, output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    os.chdir(directory)
    most = _data() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    status = 1
    try:
        call()
        status = 0
    except SystemExit as end:
        status = status_of(end)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wrong(ended: Ended) -> str | None:
    """What is no answer as it should be, in words."""
    last = ended.output.strip().rpartition("\n")[2][-300:]
    if "Traceback" in ended.output:
        return f"a traceback: {last}"
    if ended.status not in (0, 1):
        return f"ended with {ended.status}, after {ended.seconds:.1f} s: {last}"
    if ended.status and not last:
        return "failed without a word"
    if found := CONTROL.search(ended.output):
        return f"sends {found[0]!r} to a terminal: {ended.output[:300]!r}"
    if ended.seconds > SECONDS:
        return f"took {ended.seconds:.1f} s: {last}"
    if ended.taken > MEMORY:
        return f"took {ended.taken >> 20} MiB: {last}"
    return None


def listing(directory: Path, *without: Path) -> dict[str, tuple]:
    """{path: what changes when it is written} of all below a directory, but for some of it."""
    found = {}
    for path in directory.rglob("*"):
        if not any(path.is_relative_to(other) for other in without):
            stat = path.lstat()
            seen = (stat.st_size, stat.st_mtime_ns) if not path.is_dir() else ()
            found[str(path.relative_to(directory))] = (stat.st_mode, stat.st_ino, *seen)
    return found


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{key}:\s+(\d+) kB", text, re.M)[1]) * 1024


def _data() -> int:
    return _status("VmData")


def _resident() -> int:
    return _status("VmRSS")


def status_of(end: SystemExit) -> int:
    """The status with which Python ends a process for this."""
    return end.code if isinstance(end.code, int) else 0 if end.code is None else 1

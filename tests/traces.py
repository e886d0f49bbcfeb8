"""What the steps of a run really read, by strace, compared with the inputs that they declare."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.run.answers import everything
from lib.run.session import Session
from project import copy_workflow

STRACE = shutil.which("strace")
BUILT = ("results", "resources")
_STEP = re.compile(r"begin \.snakemake/quantmill/wanted/(\S+)/[0-9a-f]{16}/recipe\.json ")
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (\S+)")
_CHILD = ("clone", "clone3", "fork", "vfork")
_KEPT = (*BUILT, "clone", "fork")
_PATH = re.compile(r'(?:(AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"')


def traced(workflow: Path, directory: Path) -> Path:
    """A copy of the workflow, at `workflow`, each of whose steps runs under strace.

    It writes a file for each number of a process into `directory`. Snakemake itself is not traced:
    it asks for every file again and again, and would stop each time.
    """
    directory.mkdir(parents=True)
    calls = "trace=%file,getdents64,clone,clone3,fork,vfork"
    options = ["-ff", "-A", "-ttt", "--seccomp-bpf", "-qq", "-y", "-s", "6000"]
    options += ["-e", calls, "-e", "signal=none", "-o", str(directory / "pid")]
    again = shlex.join([STRACE, *options, "bash", "-c"])
    frame = copy_workflow(workflow) / "scripts/step.sh"
    frame.write_text(
        f'[ -n "${{QM_TRACED:-}}" ] || QM_TRACED=1 exec {again} "$BASH_EXECUTION_STRING"\n'
        + frame.read_text()
    )
    return workflow


@dataclass(frozen=True)
class Access:
    """A path that a step asked for, relative to the working directory.

    listed: it is a directory whose names were read.
    """

    path: str
    listed: bool


def steps(directory: Path, top: Path) -> Iterator[tuple[str, set[Access]]]:
    """(artifact, accesses of its step under results/ and resources/) of a traced run in `top`."""
    traces = {int(path.suffix[1:]): _lines(path) for path in directory.iterdir()}
    processes = _processes(traces)
    for process, lines in processes.items():
        if found := next(filter(None, (_STEP.search(line) for _, line in lines)), None):
            family = _family(process, processes)
            yield found[1], {a for each in family for a in _asked(processes[each], top)}


Process = tuple[int, float]  # its number, and when it was started: numbers are used again
Lines = list[tuple[float, str]]  # (when a call was made, the call)


def _lines(trace: Path) -> Lines:
    """The calls that start a process or name what is built: a few of a hundred."""
    lines = trace.read_text(errors="replace").split("\n")
    kept = (line.partition(" ") for line in lines if any(word in line for word in _KEPT))
    return [(float(at), call) for at, _, call in kept]


def _processes(traces: dict[int, Lines]) -> dict[Process, Lines]:
    """What each process and thread has called. traces: of each number."""
    starts: dict[int, list[float]] = {pid: [0.0] for pid in traces}
    for lines in traces.values():
        for pid, at in _children(lines):
            starts.setdefault(pid, []).append(at)
    for pid, lines in traces.items():  # a step's shell is started by strace, which is not traced
        starts[pid] += [at for at, line in lines if _STEP.search(line)]
    found: dict[Process, Lines] = {}
    for pid, lines in traces.items():
        times = sorted(starts[pid])
        for start, end in zip(times, [*times[1:], float("inf")], strict=True):
            found[pid, start] = [line for line in lines if start <= line[0] < end]
    return found


def _children(lines: Lines) -> Iterator[Process]:
    for at, line in lines:
        call = _CALL.match(line)
        if call and call[1] in _CHILD and call[3].isdigit():
            yield int(call[3]), at


def _family(process: Process, processes: dict[Process, Lines]) -> set[Process]:
    """A process, its threads and all processes that it started."""
    found, todo = set(), [process]
    while todo:
        process = todo.pop()
        if process not in found and process in processes:
            found.add(process)
            todo += _children(processes[process])
    return found


def _asked(lines: Lines, top: Path) -> Iterator[Access]:
    """The accesses of one process below results/ and resources/."""
    for _, line in lines:
        call = _CALL.match(line)
        if not call or call[1] in _CHILD or call[1] == "execve":
            continue
        if call[1] == "getdents64":
            paths = re.findall(r"^\d+<([^>]*)>", call[2])
        else:
            paths = [os.path.join(place, name) for _, place, name in _PATH.findall(call[2])]
        for path in paths:
            path = os.path.relpath(os.path.normpath(os.path.join(top, path)), top)
            if path.split(os.sep)[0] in BUILT:
                yield Access(path, call[1] == "getdents64")


def undeclared(session: Session, artifact: str, accesses: set[Access]) -> list[str]:
    """What a step asked for that it has not declared.

    It may read its inputs and tools, their records, and the records (not the files) of what those
    were made from. It may read its outputs and its working directory. It may list directories that
    are one of these, and no others.
    """
    known = {path: made for made in everything(session) for path in made.outputs}
    made = known[artifact]
    whole = {up.path for up in (*made.inputs.values(), *made.uses.values())}
    whole |= {path for up in made.inputs.values() for path in up.outputs}
    whole |= {
        *made.outputs,
        os.path.join(os.path.dirname(artifact), f".{Path(artifact).name}.building"),
        f"resources/work/mixes/{made.model}",  # with what an interrupted measurement goes on
    }
    single = {recipes.path_of(path) for up in [made, *_ancestors(made)] for path in up.outputs}
    single |= {recipes.path_of(up.path) for up in made.uses.values()}
    above = {str(parent) for path in whole | single for parent in Path(path).parents}
    wrong = []
    for access in sorted(accesses, key=lambda access: (access.path, access.listed)):
        path = access.path
        ours = path in whole or any(path.startswith(f"{place}/") for place in whole)
        part = re.fullmatch(r"(.*/)\.([^/]+)\.\d+\.part", path)  # of a record that is being written
        if ours or path in single or (part and part[1] + part[2] in single):
            continue
        if access.listed or path not in above:
            wrong.append(f"{artifact} {'lists' if access.listed else 'reads'} {path}")
    return wrong


def _ancestors(made: Artifact) -> list[Artifact]:
    """All that an artifact is made from, however far up."""
    found: dict[str, Artifact] = {}
    todo = list(made.inputs.values())
    while todo:
        up = todo.pop()
        if up.path not in found:
            found[up.path] = up
            todo += up.inputs.values()
    return list(found.values())

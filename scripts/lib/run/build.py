"""The build that runs in a working directory, or ran last, for those who watch it.

A build writes its plan before the first job and how it ended after the last one. If there is no end
and nobody holds the directory, it was killed.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError
from lib.forecast.machine import Machine
from lib.forecast.schedule import Job
from lib.planning import handoff
from lib.record.artifact import Artifact
from lib.record.layout import RUN_STATE

PLAN, END = RUN_STATE / "build.json", RUN_STATE / "build.end"


@dataclass(frozen=True)
class Build:
    """A build as it was planned.

    jobs: in the order of the build. wanted: {artifact: path of its wanted recipe}. began: when, in
    seconds since 1970 by the file system's clock. host: where Snakemake runs.
    """

    jobs: list[Job]
    wanted: dict[str, str]
    began: float
    host: str
    machine: Machine


def forget() -> None:
    """Forget the last build."""
    for file in (PLAN, END):
        file.unlink(missing_ok=True)


def begin(artifacts: Iterable[Artifact], jobs: Sequence[Job], machine: Machine) -> None:
    """Write the plan of a build that begins now."""
    plan = {
        "jobs": [vars(job) | {"waiting": ()} for job in jobs],
        "wanted": {artifact.path: str(handoff.path_of(artifact)) for artifact in artifacts},
        "host": os.uname().nodename,
        "machine": machine.to_json(),
    }
    part = PLAN.with_suffix(".part")
    part.write_text(json.dumps(plan), encoding="utf-8")
    part.replace(PLAN)


def end(outcome: str) -> None:
    """Write how the build ended: "done" or "failed"."""
    if PLAN.exists():
        END.write_text(outcome)


def outcome() -> str:
    """How the build ended; empty if it has not."""
    return END.read_text() if END.exists() else ""


def read(path: Path = PLAN) -> Build | None:
    """The build that runs, or ran last; None if there was none.

    Raises UserError if the plan is damaged or another version of Quantmill wrote it.
    """
    try:
        began = path.stat().st_mtime
        plan = json.loads(path.read_text(encoding="utf-8"))
        jobs = [Job(**job) for job in plan["jobs"]]
        machine = Machine.read(plan["machine"])
        return Build(jobs, plan["wanted"], began, plan["host"], machine)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        text = "the plan of the build is damaged, or of another version of Quantmill"
        raise UserError(f"{path}: {text}") from None

"""Say whether a Slurm job runs, succeeded or failed: `status.py JOBID`, run by the executor
cluster-generic.

Prints `running`, `success` or `failed`, and why on standard error where it failed. In this order:

1. The exit status that the job's own script left (submit.py): it is known even when Slurm has
   forgotten the job.
2. squeue, asked once for all jobs and kept for some seconds. sacct is never asked: it needs an
   accounting database, and answers "CANCELLED by 0" or nothing if there is none.
3. Limits, so that only jobs that run or queue are `running` for ever. A job has failed:
   - after a minute, if it left no exit status and Slurm does not know it;
   - after half an hour (QUANTMILL_SLURM_PATIENCE seconds), if Slurm does not answer, or if no node
     that fits the job is up;
   - at once, if it can never start.

Standard library alone: it runs under whatever `python3` is on the PATH.
"""

import getpass
import os
import re
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(".snakemake/slurm")
LOGS = Path("logs/slurm")
FRESH_S = 4.0
LOST_S = 60.0
PATIENCE_S = float(os.environ.get("QUANTMILL_SLURM_PATIENCE") or 1800)

ALIVE = frozenset(
    [
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "SUSPENDED",
        "REQUEUED",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
    ]
)
# A pending job with one of these will never start.
HOPELESS = re.compile(
    "DependencyNeverSatisfied|PartitionTimeLimit|PartitionNodeLimit|BadConstraints|JobHeldAdmin"
    "|launch_failed|launch failed|requeued held|AccountNotAllowed|InvalidAccount|InvalidQOS"
    "|MaxWallDurationPerJobLimit|MaxMemPerJob|MaxCpuPerJobLimit"
)
WORDS = {
    "TIMEOUT": "it ran past its time limit",
    "CANCELLED": "it was cancelled",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it ran out of memory",
}
# One that may start once an administrator has brought a node back.
NO_NODE = re.compile(
    "ReqNodeNotAvail|Nodes? required for job (is|are)|NodeDown|PartitionDown|PartitionInactive"
)
NO_MEMORY = re.compile("exceeded (job )?memory limit|oom.kill|out.of.memory", re.IGNORECASE)


def squeue() -> dict[str, tuple[str, str]]:
    """State and reason of each of the user's jobs that Slurm remembers.

    Raises:
        ConnectionError: Slurm does not answer.
    """
    try:
        done = subprocess.run(
            [
                "squeue",
                "--noheader",
                "--states=all",
                f"--user={getpass.getuser()}",
                "--format=%i|%T|%r",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise ConnectionError(error) from error
    return parse(done.stdout)


def parse(listing: str) -> dict[str, tuple[str, str]]:
    """{id: (state, reason)} from the lines `id|STATE|reason` of squeue."""
    rows = (line.split("|", 2) for line in listing.splitlines() if line.count("|") >= 2)
    return {job.strip(): (state, reason) for job, state, reason in rows}


def known(job: str) -> tuple[str, str] | None:
    """State and reason of a job; None if Slurm does not know it. Many calls share one squeue.

    Raises:
        ConnectionError: Slurm does not answer.
    """
    saved = STATE / "squeue"
    try:
        if abs(time.time() - saved.stat().st_mtime) < FRESH_S:
            found = parse(saved.read_text()).get(job)
            if found:
                return found
    except OSError:
        pass
    jobs = squeue()
    part = STATE / f"squeue.{os.getpid()}"
    part.write_text("".join(f"{key}|{state}|{why}\n" for key, (state, why) in jobs.items()))
    part.replace(saved)
    return jobs.get(job)


def seconds_since(mark: Path) -> float:
    """Seconds since the first call with this file, by this host's clock alone."""
    try:
        return time.time() - float(mark.read_text())
    except (OSError, ValueError):
        mark.write_text(str(time.time()))
        return 0.0


def log_of(job: str) -> str:
    """The path of a job's Slurm log; empty if there is none."""
    return next((str(path) for path in LOGS.glob(f"*-{job}.log")), "")


def failed(job: str, why: str) -> str:
    """Print why a job failed, with the log's reason if it has one. Returns "failed"."""
    log = log_of(job)
    if log:
        with Path(log).open("rb") as file:
            file.seek(max(0, os.path.getsize(log) - 20_000))
            if NO_MEMORY.search(file.read().decode(errors="replace")):
                why += "; it ran out of memory"
    print(f"Slurm job {job} failed: {why}{'; see ' + log if log else ''}", file=sys.stderr)
    return "failed"


def status(job: str) -> str:
    """The answer for a job: `running`, `success` or `failed`."""
    own, silent, lost = STATE / f"{job}.exit", STATE / "silent", STATE / f"{job}.lost"
    code = own.read_text().strip() if own.exists() else ""
    if code == "0":
        log = log_of(job)
        if log:
            os.unlink(log)
        own.unlink()
        return "success"
    try:
        found = known(job)
        silent.unlink(missing_ok=True)
    except ConnectionError as error:
        found = None
        if not code:
            if seconds_since(silent) < PATIENCE_S:
                return "running"
            minutes = round(PATIENCE_S / 60)
            return failed(job, f"Slurm has not answered for {minutes} minutes ({error})")
    state, reason = found or ("", "")
    if state == "COMPLETED" and not code:
        return "success"
    if found and state not in ALIVE:
        return failed(job, WORDS.get(state, state) + (f", exit status {code}" if code else ""))
    if state == "PENDING" and HOPELESS.search(reason):
        subprocess.run(["scancel", job], check=False)
        return failed(job, f"it can never start ({reason})")
    if state == "PENDING" and NO_NODE.search(reason):
        if seconds_since(lost) < PATIENCE_S:
            return "running"
        subprocess.run(["scancel", job], check=False)
        return failed(
            job, f"no node that fits it has been up for {PATIENCE_S / 60:.0f} minutes ({reason})"
        )
    if found and not code:
        lost.unlink(missing_ok=True)
        return "running"
    # Slurm has forgotten the job, or its script has ended and Slurm is still busy with it: the
    # answer is known after a while.
    if seconds_since(lost) < LOST_S:
        return "running"
    lost.unlink()
    return failed(
        job,
        f"exit status {code}"
        if code
        else "Slurm does not know it any more, and it left no exit status",
    )


if __name__ == "__main__":
    print(status(sys.argv[1]))

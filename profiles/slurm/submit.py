"""Submit one Snakemake job to Slurm and print its id: `submit.py JOBSCRIPT`, run by the executor
cluster-generic.

Reads the job's properties from the script's second line, the site's names from site.yaml beside
this file (or the file named by QUANTMILL_SLURM_SITE). Two guards:

* An earlier run that was killed leaves its jobs in the queue. A job with the same output is
  cancelled if it still waits. If it runs, the new job waits for its end; if it then ended well and
  had the same inputs, the new job has nothing to do. Each job's comment carries a digest of its
  inputs and of every output, so that any run, on any host, recognises it.
* A controller that does not answer, or a queue that is full, is asked again for ten minutes. A
  submission that timed out and succeeded all the same is recognised by the same comment.

Standard library alone: it runs under whatever `python3` is on the PATH.
"""

import getpass
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

STATE = Path(".snakemake/slurm")
LOGS = Path("logs/slurm")
SITE_KEYS = (
    "partition",
    "gpu_partition",
    "account",
    "gpu_model",
    "qos",
    "constraint",
    "tmpdir",
    "max_runtime",
    "extra",
)
PATIENCE_S = 600
TRANSIENT = re.compile(
    "timed out|unable to contact|temporarily|try again|MaxSubmitJob|connection refused",
    re.IGNORECASE,
)

# The exit status goes to a file, because Slurm forgets jobs.
SCRIPT = """\
#!/bin/sh
finish() {{
    code=$?
    [ -z "$made" ] || rm -rf "$made"
    cd {workdir}/{state}
    echo $code > "$SLURM_JOB_ID.part" && mv "$SLURM_JOB_ID.part" "$SLURM_JOB_ID.exit"
}}
made=
trap finish EXIT
{made_before}
{tmpdir}
{jobscript}
"""
MADE_BEFORE = """\
if [ "$(cat {state}/{job}.exit 2>&-)" = 0 ] && ls -d -- {outputs}; then exit 0; fi
"""
TMPDIR = """\
if [ ! -e "{path}" ] && mkdir -p "{path}"; then made="{path}"; fi
export TMPDIR="{path}"
"""


def read_site(path: Path) -> dict[str, str]:
    """The flat `key: value` lines of site.yaml; an unknown key ends the program."""
    site = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        key, colon, value = line.partition(":")
        if not colon or key not in SITE_KEYS:
            sys.exit(f"{path}: {line!r} is not one of {', '.join(SITE_KEYS)}")
        site[key] = value.strip().strip("\"'")
    return site


def properties(jobscript: str) -> dict:
    """Snakemake's properties of the job, from the script's line `# properties = {json}`."""
    for line in jobscript.splitlines():
        if line.startswith("# properties = "):
            return json.loads(line.removeprefix("# properties = "))
    sys.exit("submit.py: the job script has no line of properties")


class Marks(NamedTuple):
    """The digests in a job's comment: one of all inputs, and one of each output's path.

    Jobs that write the same file have the same digest among `outputs`.
    """

    inputs: str
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, job: dict) -> "Marks":
        """The marks of a job, from its properties.

        Without input or output files `inputs` is "": no other job is taken for the same one.
        """
        here = os.path.realpath(".")
        outputs = job["output"] or [job.get("rule", ""), json.dumps(job.get("wildcards"))]
        inputs = digest(*sorted(job["input"])) if job["input"] and job["output"] else ""
        return cls(inputs, tuple(digest(here, path) for path in outputs))

    @classmethod
    def read(cls, comment: str) -> "Marks":
        """The marks in a comment that `str()` wrote; empty marks for any other comment."""
        name, _, rest = comment.partition(":")
        inputs, _, outputs = rest.partition(":")
        return cls(inputs, tuple(outputs.split(","))) if name == "quantmill" else cls("", ())

    def __str__(self) -> str:
        return f"quantmill:{self.inputs}:{','.join(self.outputs)}"


def digest(*words: str) -> str:
    """A short digest of some words: 12 hexadecimal digits."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


def slurm(*command: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Slurm command, without a surrounding job's variables: sbatch takes them as options.

    script: the command's standard input.
    """
    env = {
        key: value
        for key, value in os.environ.items()
        if key == "SLURM_CONF" or not key.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_"))
    }
    return subprocess.run(
        command, input=script, env=env, capture_output=True, text=True, check=False
    )


def earlier(marks: Marks) -> dict[str, Marks]:
    """{id: marks} of the user's jobs, waiting or running, that write one of the same outputs.

    Raises:
        ConnectionError: Slurm does not answer.
    """
    asked = slurm("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%i|%k")
    if asked.returncode:
        raise ConnectionError(asked.stderr.strip())
    lines = (line.strip().partition("|") for line in asked.stdout.splitlines())
    found = {job: Marks.read(comment) for job, _, comment in lines}
    return {job: one for job, one in found.items() if set(one.outputs) & set(marks.outputs)}


def options(job: dict, site: dict[str, str], marks: Marks) -> list[str]:
    """The sbatch options of a job, from its resources and the site's settings."""
    resources = job["resources"]
    name = job.get("rule") or job.get("groupid") or "group"
    minutes = int(resources.get("runtime", 0))
    if minutes and "max_runtime" in site:
        minutes = min(minutes, int(site["max_runtime"]))
    gpus = int(resources.get("gpu", 0))
    partition = resources.get("slurm_partition") or site.get(
        "gpu_partition" if gpus else "partition"
    )
    model = resources.get("gpu_model") or site.get("gpu_model")
    said = {
        "job-name": f"quantmill-{name}",
        "comment": str(marks),
        "chdir": os.getcwd(),
        "output": f"{LOGS}/{name}-%j.log",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": job["threads"],
        "mem": f"{resources['mem_mb']}M" if "mem_mb" in resources else None,
        "time": minutes or None,
        "gres": (f"gpu:{model}:{gpus}" if model else f"gpu:{gpus}") if gpus else None,
        "partition": partition,
        "account": site.get("account"),
        "qos": site.get("qos"),
        "constraint": resources.get("constraint") or site.get("constraint"),
    }
    flags = [f"--{key}={value}" for key, value in said.items() if value]
    # A requeue by Slurm would keep the first attempt's memory and time; Snakemake's retry doubles
    # them.
    return [*flags, "--no-requeue", *site.get("extra", "").split()]


def submit(flags: list[str], script: Callable[[str], str], marks: Marks, outputs: list[str]) -> str:
    """Submit a job behind all earlier jobs of the same outputs. Returns the new job's id.

    script(made_before): the job's script; made_before: shell lines that may end it at once.

    Raises:
        ConnectionError: Slurm did not answer, or takes no job now: worth another try.
    """
    before = earlier(marks)
    made_before = ""
    if before:
        slurm("scancel", "--state=PENDING", *before)
        print(f"waiting for Slurm job {', '.join(before)} of an earlier run", file=sys.stderr)
        flags = [*flags, f"--dependency=afterany:{':'.join(before)}"]
        if marks.inputs and list(before.values()) == [marks]:
            made_before = MADE_BEFORE.format(
                state=STATE, job=next(iter(before)), outputs=shlex.join(outputs)
            )
    done = slurm("sbatch", "--parsable", *flags, script=script(made_before))
    if done.returncode:
        if TRANSIENT.search(done.stderr):
            raise ConnectionError(done.stderr.strip())
        sys.exit(f"sbatch refused the job: {done.stderr.strip()}\n  sbatch {' '.join(flags)}")
    return done.stdout.strip().split(";")[0]


def link_status(home: Path) -> None:
    """Link to status.{sh,py} in STATE, where the profile's relative path finds them."""
    for name in ("status.sh", "status.py"):
        link, program = STATE / name, str(home / name)
        if not link.is_symlink() or os.readlink(link) != program:
            part = STATE / f"{name}.{os.getpid()}"
            part.symlink_to(program)
            part.replace(link)


def main() -> None:
    """Submit the job script named on the command line."""
    here = Path(__file__).resolve().parent
    STATE.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    link_status(here)
    site = read_site(Path(os.environ.get("QUANTMILL_SLURM_SITE") or here / "site.yaml"))
    jobscript = Path(sys.argv[1]).read_text()
    job = properties(jobscript)
    marks = Marks.of(job)
    script = partial(
        SCRIPT.format,
        state=STATE,
        workdir=shlex.quote(os.getcwd()),
        tmpdir=TMPDIR.format(path=site["tmpdir"]) if "tmpdir" in site else "",
        jobscript=jobscript,
    )
    flags = options(job, site, marks)
    end = time.monotonic() + PATIENCE_S
    pause = 1.0
    while True:
        try:
            print(
                submit(flags, lambda lines: script(made_before=lines), marks, job["output"] or [])
            )
            return
        except ConnectionError as error:
            if time.monotonic() > end:
                sys.exit(f"Slurm took no job for {PATIENCE_S // 60} minutes: {error}")
            time.sleep(pause)
            pause = min(2 * pause, 30)


if __name__ == "__main__":
    main()

"""Measure how fast this machine runs each form, by the form's own engine.

Writes results/MODEL/speed/HOST.json: tokens a second of a prompt and of a text, with errors; and
speed.html, a table of all hosts. A form is measured again if its file, its engine, the machine or
--cores has changed, if other programs disturbed it, or with --again (`snakemake speed --force`). No
recipe reads these files.
"""

import json
import math
import os
import platform
import re
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from lib.errors import UserError, program
from lib.forecast.machine import gpus
from lib.planning.staleness import State
from lib.record.artifact import Artifact
from lib.record.layout import speed_directory
from lib.record.recipe import Record
from lib.report.speed import Conditions, Host, Machine, Measured, Rate, read, write
from lib.run.answers import open_session, parser
from lib.run.lifecycle import write_gallery
from lib.run.session import Session
from lib.stages.family import Family, Speedometer
from lib.stages.registry import FAMILIES
from lib.units import human

SCRIPTS = Path(__file__).parent
# As llama-bench's own pp512 and tg128.
LENGTHS = {"prompt_tokens": 512, "text_tokens": 128, "repetitions": 5}


@dataclass(frozen=True)
class Form:
    """A form of a model. record: of what is there now; None: nothing is, or it is stale.

    is_cold: it lies elsewhere (docs/cold.md).
    """

    model: str
    name: str
    family: Family
    artifact: Artifact
    record: Record | None
    is_cold: bool = False

    @property
    def bytes(self) -> float:
        """Its size; infinite if it is not there."""
        return self.record.bytes if self.record else math.inf


def main() -> int | None:
    options = parser(__doc__)
    options.add_argument("--cores", type=int, required=True, help="threads of an engine, at most")
    options.add_argument("--again", action="store_true", help="measure also what has not changed")
    options.add_argument("--cluster", action="store_true", help="jobs go to a cluster: refuse")
    arguments = options.parse_args()
    if arguments.cluster:
        raise UserError("it measures the machine it runs on: run it on a node, without the profile")
    session = open_session(arguments.config)
    here, found = this_machine(), list(forms(session))
    threads = min(arguments.cores, here.machine.cores)
    say(f"{here.host}: {here.machine}; {threads} threads. Tokens a second,")
    say("of a prompt of {prompt_tokens} tokens and a text of {text_tokens}:".format(**LENGTHS))
    failures = 0
    for model in dict.fromkeys(form.model for form in found):
        say(f"\n{model}")
        own = sorted((form for form in found if form.model == model), key=lambda form: form.bytes)
        failures += measure_all(session, here, own, threads, arguments.again)
    write_gallery(session)  # it links to the pages
    return 1 if failures else None


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def this_machine() -> Host:
    """The machine, with nothing measured.

    Where CUDA_VISIBLE_DEVICES hides GPUs it is a host of its own: NAME-cpu, or NAME-gpu0-2.
    """
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M)
        name = found[1] if found else name
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    machine = Machine(cpu=name, cores=cores, gpus=gpus("name"), memory=memory)
    host, seen = socket.gethostname(), gpus("index")
    if seen != gpus("index", hidden=True):
        host += f"-gpu{'-'.join(seen)}" if seen else "-cpu"
    return Host(host=host, machine=machine)


def forms(session: Session) -> Iterator[Form]:
    """The forms that `--config target=…` names, by model, name or file; without it all.

    A name counts within the named models only, if there are such. Raises UserError for a word that
    names none.
    """
    found = [
        (model, name, family, artifact)
        for model in session.graph.names
        for family, made in session.graph.model(model).families.items()
        for name, artifact in made.forms.items()
    ]
    words = set(session.options.target)
    models = words & {model for model, *_ in found}
    files = words & {artifact.path for *_, artifact in found}
    names = words - models - files
    if unknown := names - {name for model, name, *_ in found if model in models or not models}:
        of = f"form of {', '.join(sorted(models))}" if models else "form of one"
        raise UserError(f"target: {', '.join(sorted(unknown))} is no model and no {of}")
    for model, name, family, artifact in found:
        within = (model in models or not models) and (name in names or not names)
        if artifact.path in files or (within and (words > files or not words)):
            fresh = session.plan.state(artifact) is State.FRESH
            record = session.plan.record(artifact) if fresh else None
            is_cold = session.plan.place(artifact) is not None
            yield Form(model, name, FAMILIES[family], artifact, record, is_cold)


def measure_all(session: Session, here: Host, own: list[Form], threads: int, again: bool) -> int:
    """Measure the forms of one model, the page after each; how many could not be measured."""
    folder, failures = speed_directory(own[0].model), 0
    name = re.sub("[^A-Za-z0-9]+", "-", here.host)
    before = folder / f"{name}.json"
    host = here.model_copy(update={"forms": read(before).forms if before.exists() else {}})
    width = max(len(form.name) for form in own)
    for form in own:
        meter = form.family.speedometer(session.graph.shared)
        if why := obstacle(form, meter, here):
            say(f"  {form.name:{width}}  {why}")
            continue
        conditions = Conditions(
            engine=meter.engine,
            command=meter.command,
            cpu=here.machine.cpu,
            gpus=here.machine.gpus,
            threads=threads,
            **LENGTHS,
        )
        known = host.forms.get(form.name)
        if again or known is None or known.conditions != conditions or known.disturbance:
            known = measure(form, meter, conditions)
            if known is None:
                failures += 1
                say(f"  {form.name:{width}}  could not be measured; see above")
                continue
            host.forms[form.name] = known
            write(folder, name, host)
        say(f"  {form.name:{width}}  {row(known)}")
    if host.forms:
        say(f"  {write(folder, name, host)}")
    return failures


def obstacle(form: Form, meter: Speedometer | None, here: Host) -> str | None:
    """Why the form cannot be measured, in words; None if it can."""
    if meter is None:
        return f"{form.family.title}: no way to measure speed is known"
    if form.family.needs_gpu and not here.machine.gpus:
        return f"{form.family.title} needs a CUDA GPU, and there is none here"
    if meter.unfit:
        return meter.unfit
    for tool in meter.uses.values():
        if not Path(tool.path).exists():
            return f"its engine is not there; build it first: {tool.path}"
    if form.is_cold:
        return f"is cold; `snakemake {form.artifact.path}` brings it back"
    if form.record is None:
        return f"is not there, or stale; build it first: {form.artifact.path}"
    return None


def measure(form: Form, meter: Speedometer, conditions: Conditions) -> Measured | None:
    """Run the family's program on the form; None if it failed, which it has told on stderr."""
    script, *words = meter.command
    options = LENGTHS | {"threads": conditions.threads, "gpus": len(conditions.gpus)}
    for name, number in options.items():
        words += [f"--{name.replace('_', '-')}", str(number)]
    command = [sys.executable, SCRIPTS / script, form.artifact.path, *words]
    environment = None
    if meter.uses:
        command[0] = Path(meter.uses["environment"].path, "venv/bin/python")
        if extension := meter.uses.get("extension"):
            places = filter(None, (extension.path, os.environ.get("PYTHONPATH")))
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    before, begin = core_seconds(), time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    all_cores = (time.monotonic() - begin) * (os.cpu_count() or 1)
    busy = max(0.0, core_seconds() - before) / all_cores
    if done.returncode:
        return None
    found = json.loads(done.stdout.strip().rpartition("\n")[2])
    return Measured(
        file=form.artifact.path,
        bytes=form.record.bytes,
        sha256=form.record.sha256,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        backend=found["backend"],
        busy=busy,
        conditions=conditions,
        **{kind: rate(found[kind]) for kind in ("prompt", "text")},
    )


def core_seconds() -> float:
    """The core seconds that other programs than those started here have used on this machine."""
    used, own = psutil.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.user + used.nice + used.system - own.ru_utime - own.ru_stime


def rate(samples: list[float]) -> Rate:
    """The mean of these tokens a second, and the standard deviation."""
    return Rate(mean=statistics.mean(samples), error=statistics.stdev(samples))


def row(known: Measured) -> str:
    """A form's figures, for the terminal."""
    line = f"{human(known.bytes):>8}  prompt {known.prompt!s:>17}  text {known.text!s:>15}"
    return f"{line}  ({known.disturbance})" if known.disturbance else line


if __name__ == "__main__":
    program(main)

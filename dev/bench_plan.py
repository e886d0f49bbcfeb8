"""Measure how long Quantmill and other build systems take to find what is to be built.

    python dev/bench_plan.py --models 100 --quants 30 DIRECTORY
    python dev/bench_plan.py DIRECTORY --tools quantmill make ninja dvc snakemake

Writes a working directory in which every artifact is a file of a few bytes with its record, so that
nothing has to be built. Then measures dry runs: with nothing to build, with one quant added, of one
model, of one file. Prints for each CPU seconds (user + system, child processes included), peak
memory in MiB, and the number of jobs. The same graph is written for GNU make, ninja, DVC and plain
Snakemake, and measured with nothing to build.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from lib.errors import UserError, program
from lib.record import recipe as recipes
from lib.record.artifact import in_order
from lib.run.session import Session

ROOT = Path(__file__).resolve().parent.parent
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1")
TEXTS = ("calibration", "evaluation")
# A plain Snakefile: a rule for each stage, whose inputs a function gives.
PLAIN = """
import json
MADE_FROM = json.load(open("made_from.json"))
rule all:
    input: list(MADE_FROM)
for pattern in (
    "results/{model}/safetensors", "results/{model}/gguf/{name}.gguf",
    "results/{model}/imatrix.dat", "results/{model}/evaluation/base.kld",
    "results/{model}/evaluation/{form}.json", "results/{model}/report/quality.csv",
    "results/{model}/README.md",
):
    rule:
        output: pattern
        input: lambda wildcards, pattern=pattern: MADE_FROM[pattern.format_map(vars(wildcards))]
        shell: "touch {output}"
"""
MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds, said = used.ru_utime + used.ru_stime, done.stdout + done.stderr
print(json.dumps([done.returncode, seconds, used.ru_maxrss / 1024, said]))
"""


def config(models: int, quants: int) -> dict:
    """A config of `models` merges of two small models.

    Each has `quants` quants, an imatrix and evaluations.
    """
    names = [{"name": f"q{i:03d}", "type": TYPES[i % len(TYPES)]} for i in range(quants)]
    parts = [
        {"model": "./models/a", "parameters": {"weight": 0.3}},
        {"model": "./models/b", "parameters": {"weight": 0.7}},
    ]
    return {
        "corpora": {name: {"path": f"{name}.txt"} for name in TEXTS},
        "models": {
            f"model-{i:03d}": {
                "merge": {"merge_method": "linear", "models": parts, "dtype": "bfloat16"},
                "random_seed": i,
                "gguf": {"imatrix": {"chunks": 10 + i}, "quants": names},
                "evaluate": {},
            }
            for i in range(models)
        },
    }


def write_sources() -> None:
    """Write the two model directories and the two texts that the config names."""
    for name in ("a", "b"):
        directory = Path("models", name)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        save_file({"x": numpy.zeros(2, numpy.float16)}, directory / "model.safetensors")
    for name in TEXTS:
        Path(f"{name}.txt").write_text(f"{name}\n" * 100)


def pretend_built(session: Session) -> int:
    """Write each artifact and its record as if it had been built; the number of artifacts."""
    os.fsync = lambda _: None  # thousands of records, each flushed to the disk, take minutes
    artifacts, shas = in_order(session.graph), {}
    for artifact in artifacts:
        inputs = {role: shas[up.path] for role, up in artifact.inputs.items()}
        for path in artifact.outputs:
            text = f"{path} {artifact.digest}".encode()
            size, sha = len(text), hashlib.sha256(text).hexdigest()
            file = Path(path, "file") if artifact.directory else Path(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)
            files = {"file": [size, sha]} if artifact.directory else {}
            recipes.write(
                recipes.Record(path, artifact.recipe, artifact.digest, size, sha, files, inputs)
            )
            shas[path] = sha
    session.contents.save()
    return len(artifacts)


def write_others(session: Session) -> None:
    """Write the same graph for make, ninja, DVC and plain Snakemake into the directory others/.

    The command of each artifact is `touch`.
    """
    made = {artifact.path for artifact in session.graph}
    rules = {}
    for artifact in session.graph:
        ups = sorted({up.path for up in artifact.inputs.values()})
        sources = {up: f"resources/{'m' if 'models' in up else 'c'}" for up in ups}
        rules[artifact.path] = [up if up in made else sources[up] for up in ups]
    here = Path("others")
    for path in ("resources/m", "resources/c", *rules):
        file = here / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    lines = [f"{path}: {' '.join(ups)}\n\ttouch $@\n" for path, ups in rules.items()]
    (here / "Makefile").write_text("".join([f"all: {' '.join(rules)}\n", *lines]))
    lines = [f"build {path}: t {' '.join(ups)}\n" for path, ups in rules.items()]
    (here / "build.ninja").write_text("".join(["rule t\n command = touch $out\n", *lines]))
    (here / "made_from.json").write_text(json.dumps(rules))
    (here / "Snakefile").write_text(PLAIN)
    stages = {
        f"s{number}": {"cmd": f"touch {path}", "deps": ups, "outs": [path]}
        for number, (path, ups) in enumerate(rules.items())
    }
    (here / "dvc.yaml").write_text(json.dumps({"stages": stages}))


def measure(commands: dict[str, list[str]], directory: Path, repeat: int) -> None:
    """Run the commands, {name: words}, and print for each its CPU seconds, memory and outcome.

    All commands are run in each of `repeat` rounds; the best figures are printed. Raises UserError
    if a command fails, because its figures would mean nothing.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    best: dict[str, tuple[float, float, str]] = {}
    for _ in range(repeat):
        for name, command in commands.items():
            answer = subprocess.run(
                [sys.executable, "-c", MEASURE, *command],
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            status, seconds, memory, said = json.loads(answer.stdout)
            if status:
                raise UserError(f"{name}: {said}")
            best[name] = min(best.get(name, (seconds, memory, said)), (seconds, memory, said))
    for name, (seconds, memory, said) in best.items():
        print(f"{name:<40} {seconds:6.2f} s CPU {memory:5.0f} MB  {outcome(said)}", flush=True)


def outcome(said: str) -> str:
    """The outcome of a command by its output: Snakemake's number of jobs, or the last line."""
    if "Building DAG" in said:
        return f"{len(re.findall(r'^(?:local)?rule (?!all:)', said, re.M))} jobs"
    return (said.strip().splitlines() or [""])[-1][:40]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="to write; its content is deleted first")
    parser.add_argument("--models", type=int, default=100, help="number of models (default: 100)")
    parser.add_argument("--quants", type=int, default=30, help="quants of each (default: 30)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="rounds; the best counts (default: 3)"
    )
    parser.add_argument(
        "--tools",
        nargs="*",
        default=["quantmill", "make", "ninja", "dvc", "snakemake"],
        metavar="TOOL",
        help="quantmill, make, ninja, dvc, snakemake (default: all)",
    )
    arguments = parser.parse_args()
    here = arguments.directory.resolve()
    if here.exists() and any(here.iterdir()) and not (here / "bench.yaml").exists():
        raise UserError(f"{here} is not empty and was not made by this script")
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    os.chdir(here)
    wanted = config(arguments.models, arguments.quants)
    Path("bench.yaml").write_text(json.dumps(wanted))
    write_sources()
    session = Session(wanted, None, True)
    print(
        f"{pretend_built(session)} artifacts of {arguments.models} models "
        f"x {arguments.quants} quants"
    )
    name, first = next(iter(wanted["models"].items()))
    first["gguf"]["quants"] = [*first["gguf"]["quants"], {"name": "new", "type": "Q3_K_M"}]
    Path("added.yaml").write_text(json.dumps(wanted))
    Path("empty.smk").write_text("rule all:\n")
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run"]
    snakemake += ["--quiet", "host", "progress"]
    mine = [*snakemake, "--snakefile", str(ROOT / "Snakefile")]
    if "quantmill" in arguments.tools:
        profile = ["--workflow-profile", str(ROOT / "profiles/default")]
        file, whole = f"results/{name}/gguf/{name}-q001.gguf", ["--configfile", "bench.yaml"]
        everything = ["--configfile", str(here / "bench.yaml")]
        Path("fresh").mkdir()
        for path in ("models", *(f"{text}.txt" for text in TEXTS)):
            Path("fresh", path).symlink_to(here / path)
        commands = {
            "an empty Snakefile": [*snakemake, *profile, "--snakefile", "empty.smk"],
            "Quantmill, nothing to be done": [*mine, *whole],
            "Quantmill, one quant added": [*mine, "--configfile", "added.yaml"],
            "Quantmill, one model of the config": [*mine, *whole, "--config", f"model={name}"],
            "Quantmill, one file": [*mine, file, *whole],
            "Quantmill, everything stale": [*mine, *everything, "--directory", "fresh"],
        }
        measure(commands, here, arguments.repeat)
    write_others(session)
    # By tool: its dry run, and the commands before it, which make the logs that it compares with.
    others = {
        "make": (["make", "--dry-run"], []),
        "ninja": (["ninja", "-n"], [["ninja"]]),
        "dvc": (["dvc", "status"], [["dvc", "init", "--no-scm"], ["dvc", "commit", "-f"]]),
        "snakemake": ([*snakemake, "--snakefile", "Snakefile"], []),
    }
    for name, (command, before) in others.items():
        if name not in arguments.tools:
            continue
        if shutil.which(command[0]) is None:
            print(f"{name:<40} is not installed")
            continue
        for words in before:
            subprocess.run(words, cwd="others", check=True, capture_output=True)
        measure({f"{name}, nothing to be done": command}, here / "others", 1)
        if name == "snakemake":
            everything = {"snakemake, everything stale": [*command, "--forceall"]}
            measure(everything, here / "others", 1)


if __name__ == "__main__":
    program(main)

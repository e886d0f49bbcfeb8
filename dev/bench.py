"""Compare a whole build by Quantmill with the same tool calls in a script, by make and Snakemake.

    python dev/bench.py --ready DIR [--configfile FILE] [--cores 2] [--by script make quantmill]

DIR is a working directory in which resources/ is built (tools and sources). Everything else is
built in the new directories DIR-script (one call after the other), DIR-make (`make -j CORES`),
DIR-snakemake (a plain Snakefile, a rule for each file) and DIR-quantmill, in turn. With --add, one
quant is added to each afterwards, as often as --add-rounds says: it is removed in between, with
what was made from it. Prints a Markdown table of means: wall time and core time in seconds, the
most that the disk held more than before, what all processes read and wrote (through the system's
cache, so a file that is read twice counts twice), in GB, and Quantmill's wall time to the other's,
pair by pair (least to most).
"""

import argparse
import copy
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from lib.config.load import load
from lib.errors import UserError, program
from lib.flags.context import context_flags
from lib.flags.imatrix import imatrix_flags
from lib.flags.quantize import quantize_flags
from lib.formats.merge_references import substitute_references
from lib.hub.lock import Lock
from lib.planning.graph import Graph
from lib.record.artifact import in_order
from lib.record.contents import Contents

ROOT = Path(__file__).resolve().parent.parent
TOOLS = "resources/llama.cpp/bin"

# What was said on the command line: every step below is typed for it.
said = argparse.Namespace()
SMOKE = ["-n", "24", "-no-cnv", "--temp", "0", "--no-warmup", "--simple-io", "--check-tensors"]


def merge(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The command of a merge: mergekit, on a configuration that is written here."""
    places = {role.removeprefix("model "): f"./{path}" for role, path in up.items()}
    file = f"{out.replace('/', '-')}.yaml"
    Path(file).write_text(yaml.safe_dump(substitute_references(options["merge"], places)))
    typed = ["mergekit-yaml", file, out, "--random-seed", "42"]
    return [shlex.join([*typed, *(["--cuda", "--low-cpu-memory"] if said.gpu else [])])]


def convert(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The commands of a conversion: llama.cpp's converter, then a few tokens from its GGUF."""
    kind = ["--outtype", options["outtype"], "--model-name", options["model_name"]]
    typed = [sys.executable, "resources/llama.cpp/convert_hf_to_gguf.py", up["model"], *kind]
    return [shlex.join([*typed, "--outfile", out]), *smoke(out)]


def imatrix(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The command of an importance matrix: llama-imatrix."""
    flags = [*imatrix_flags(options), "--output-format", "dat", "-o", out]
    return [runs("llama-imatrix", "-m", up["gguf"], "-f", up["corpus"], *flags)]


def quantize(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The command of a quant: llama-quantize, with all cores."""
    matrix = ["--imatrix", up["imatrix"]] if "imatrix" in up else []
    flags = [*matrix, *quantize_flags(options)]
    words = [*flags, up["gguf"], out, options["type"], str(said.cores)]
    return [tool("llama-quantize", *words)]


def split(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The commands of shards: make their directory, run llama-gguf-split."""
    size, prefix = options["split_max_size"], f"{out}/{Path(up['gguf']).stem}"
    typed = tool("llama-gguf-split", "--split", "--split-max-size", size, up["gguf"], prefix)
    return [f"mkdir -p {shlex.quote(out)}", typed]


def base_logits(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The command of base logits: llama-perplexity on the unquantized model."""
    flags = [*context_flags(options), "-f", up["corpus"], "--kl-divergence-base", out]
    return [runs("llama-perplexity", "-m", up["gguf"], *flags)]


def evaluate(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The commands of an evaluation: llama-perplexity, then a few tokens from the form."""
    flags = ["-c", str(options["context"]), "--kl-divergence-base", up["base"], "--kl-divergence"]
    measured = runs("llama-perplexity", "-m", up["gguf"], *flags)
    return [f"{measured} > {shlex.quote(out)}", *smoke(up["gguf"])]


def tool(name: str, *words: str) -> str:
    """The command line of one of llama.cpp's tools, quoted for a shell."""
    return shlex.join([f"{TOOLS}/{name}", *words])


def runs(name: str, *words: str) -> str:
    """The command line of a tool that runs a model: on the GPU, or on so many threads."""
    where = ["-ngl", "99"] if said.gpu else ["-t", str(said.threads)]
    return tool(name, *where, *words)


def smoke(gguf: str) -> list[str]:
    """The command that loads a GGUF file and generates a few tokens, if the others check too."""
    return [tool("llama-completion", "-m", gguf, *SMOKE)] if said.checks else []


# By rule, the functions above: (path of the artifact, {role: path of an input}, options) ->
# command lines. Reports and cards have none.
STEPS = {
    step.__name__: step
    for step in (merge, convert, imatrix, quantize, split, base_logits, evaluate)
}


class Step(NamedTuple):
    """How one artifact is made without Quantmill: its path, its inputs' paths, command lines."""

    path: str
    inputs: list[str]
    directory: bool
    commands: list[str]


def steps(graph: Graph) -> list[Step]:
    """The steps of all artifacts of a config that a tool makes, each after its inputs."""
    found: list[Step] = []
    for artifact in in_order(graph):
        if typed := STEPS.get(artifact.rule):
            up = {role: made_from.path for role, made_from in artifact.inputs.items()}
            commands = [f"mkdir -p {shlex.quote(str(Path(artifact.path).parent))}"]
            for line in typed(artifact.path, up, artifact.options):
                commands.append(line if line.startswith("mkdir") else f"{line} </dev/null")
            inputs = [path for path in up.values() if not path.startswith("resources/")]
            found.append(Step(artifact.path, inputs, artifact.directory, commands))
    return found


def script(found: list[Step]) -> list[str]:
    """Write a shell script, one call after the other. Returns the command that builds."""
    lines = [line for step in found for line in step.commands]
    Path("build.sh").write_text("\n".join(["set -e", *lines]))
    return ["bash", "build.sh"]


def make(found: list[Step]) -> list[str]:
    """Write a makefile. Returns the command that builds."""
    lines = [f"all: {' '.join(step.path for step in found)}"]
    for step in found:
        lines.append(f"{step.path}: {' '.join(step.inputs)}")
        lines += ["\t" + line.replace("$", "$$") for line in step.commands]
    Path("Makefile").write_text("\n".join(lines) + "\n")
    return ["make", "-j", str(said.cores)]


def snakemake(found: list[Step]) -> list[str]:
    """Write a Snakefile without Quantmill. Returns the command that builds."""
    rules = [f"rule all:\n    input: {[step.path for step in found]!r}\n"]
    for step in found:
        output = f"directory({step.path!r})" if step.directory else repr(step.path)
        commands = "\n".join(step.commands).replace("{", "{{").replace("}", "}}")
        rules.append(
            f"rule:\n    input: {step.inputs!r}\n    output: {output}\n    shell: {commands!r}\n"
        )
    Path("Snakefile").write_text("\n".join(rules))
    return [sys.executable, "-m", "snakemake", "--cores", str(said.cores), "--quiet", "all"]


BASELINES = {kind.__name__: kind for kind in (script, make, snakemake)}


def quantmill(configfile: Path) -> list[str]:
    """The command by which Quantmill builds."""
    build = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile")]
    build += ["--cores", str(said.cores), "--configfile", str(configfile.resolve())]
    return [*build, *(["--profile", str(ROOT / "profiles/gpu")] if said.gpu else [])]


def planned(raw: dict, place: Path) -> Graph:
    """The artifacts that a config declares in a directory."""
    return Graph(load(copy.deepcopy(raw), place)[0], Contents(), Lock())


def written(kind: str, place: Path, raw: dict, built: dict | None = None) -> list[str]:
    """Write what `kind` builds a config by. Returns the command. built: a config that is built."""
    os.chdir(place)
    config = place.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(raw, sort_keys=False))
    if kind == "quantmill":
        return quantmill(config)
    known = {artifact.path for artifact in planned(built, place)} if built else set()
    return BASELINES[kind]([step for step in steps(planned(raw, place)) if step.path not in known])


def take_away(kind: str, place: Path, raw: dict, more: dict) -> None:
    """Remove what was built of the config `more` and is not in `raw`; reports and cards go back."""
    for path in {a.path for a in planned(more, place)} - {a.path for a in planned(raw, place)}:
        shutil.rmtree(place / path) if (place / path).is_dir() else (place / path).unlink()
        (place / f"{path}.recipe.json").unlink(missing_ok=True)
    if kind == "quantmill":
        timed(written(kind, place, raw), place)


def prepare(ready: Path, place: Path) -> None:
    """Make a directory for a build, with what is ready for it."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for path in ready.iterdir():
        if path.name == "resources":
            shutil.copytree(path, place / path.name, symlinks=True)
        elif path.name not in ("results", ".snakemake", "logs", "benchmarks"):
            (place / path.name).symlink_to(path)
    # What Quantmill knows of the sources' content: it has to read them, as in a first run.
    (place / "resources/contents.json").unlink(missing_ok=True)


class Spent(NamedTuple):
    """What a build took: seconds of wall time, core seconds, bytes."""

    wall: float
    cpu: float
    disk: int
    read: int
    written: int


def timed(command: list[str], directory: Path) -> Spent:
    """Run a command in a directory. Its output goes into DIRECTORY.log.

    Raises UserError if the command fails.
    """
    log, counts = directory.with_suffix(".log"), directory.with_suffix(".io")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    free, least = shutil.disk_usage(directory).free, sys.maxsize
    # A shell's count includes all processes that it has waited for, and their children.
    counting = '"$@" && cat /proc/$$/io >"$0"'
    with open(log, "a") as file:
        running = subprocess.Popen(
            ["bash", "-c", counting, counts, *command],
            cwd=directory,
            stdout=file,
            stderr=file,
            env=environment,
        )
        while running.poll() is None:
            least = min(least, shutil.disk_usage(directory).free)
            time.sleep(0.1)
    wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if running.returncode:
        raise UserError(f"{command[0]} failed; see {log}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    io = dict(line.split(": ") for line in counts.read_text().splitlines())
    return Spent(wall, cpu, free - least, int(io["rchar"]), int(io["wchar"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ready", type=Path, required=True, help="working directory with resources/"
    )
    parser.add_argument(
        "--configfile",
        type=Path,
        default=ROOT / "config/config.yaml",
        help="config, YAML with the keys of config/README.md (default: the embedded one)",
    )
    parser.add_argument("--cores", type=int, default=2, help="of each build (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="of a tool that runs a model")
    parser.add_argument("--gpu", action="store_true", help="merge and run models on the GPU")
    parser.add_argument("--no-checks", dest="checks", action="store_false", help="of GGUFs, but")
    parser.add_argument("--rounds", type=int, default=1, help="of all builds (default: 1)")
    builders, usual = [*BASELINES, "quantmill"], ["script", "quantmill"]
    parser.add_argument(
        "--by", nargs="+", choices=builders, default=usual, help="default: script quantmill"
    )
    parser.add_argument("--add", metavar="TYPE", help="then add this quant to the first model")
    parser.add_argument(
        "--add-rounds", type=int, default=1, help="of that; all take turns (default: 1)"
    )
    parser.parse_args(namespace=said)
    ready = said.ready.resolve()
    places = {kind: ready.with_name(f"{ready.name}-{kind}") for kind in said.by}
    raw = yaml.safe_load(said.configfile.read_text())
    for model in raw["models"].values():  # nobody else finds mixes
        if gguf := model.get("gguf"):
            gguf["quants"] = [
                q for q in gguf.get("quants", []) if isinstance(q, str) or "type" in q
            ]
            gguf.pop("mixes", None)
    more = copy.deepcopy(raw)
    if said.add:
        next(m for m in more["models"].values() if m.get("gguf"))["gguf"]["quants"].append(said.add)
    rows: dict[tuple[str, str], list[Spent]] = {}

    def build(what: str, kind: str, *configs: dict) -> None:
        command = written(kind, places[kind], *configs)
        os.sync()
        spent = timed(command, places[kind])
        rows.setdefault((what, kind), []).append(spent)
        # A machine may be taken away before the table is there.
        print(f"{what}, {kind}: {spent.wall:.1f} s", file=sys.stderr, flush=True)

    for _ in range(said.rounds):
        for kind, place in places.items():
            prepare(ready, place)
            build("everything", kind, raw)
        for number in range(said.add_rounds if said.add else 0):
            for kind, place in places.items():
                if number:
                    take_away(kind, place, raw, more)
                build(f"{said.add} added", kind, more, raw)
        for kind in places.keys() - {"quantmill"}:
            shutil.rmtree(places[kind] / "results")
    print("| build | by | wall, s | cores, s | disk, GB | read, GB | written, GB | wall, ratio |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: |")
    for (what, kind), spent in rows.items():
        mean = Spent(*(sum(column) / len(spent) for column in zip(*spent, strict=True)))
        pairs = zip(rows.get((what, "quantmill"), ()), spent, strict=False)
        ratios = [mill.wall / other.wall for mill, other in pairs if kind != "quantmill"]
        ratio = f"{sum(ratios) / len(ratios):.2f}" if ratios else ""
        if len(ratios) > 1:
            ratio += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        sizes = " | ".join(f"{part / 1e9:.2f}" for part in mean[2:])
        print(f"| {what} | {kind} | {mean.wall:.1f} | {mean.cpu:.1f} | {sizes} | {ratio} |")


if __name__ == "__main__":
    program(main)

"""Time a whole build by Snakemake against a plain shell script of the same tool calls, one after the other.

Needs a working directory in which resources/ is ready (tools and sources): both then make everything else from
nothing, in new directories beside it. Prints both wall times in seconds and their ratio.

    python dev/bench_overhead.py --ready DIR [--configfile FILE] [--cores 2]
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

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
from lib.record.artifact import Artifact
from lib.record.contents import Contents

ROOT = Path(__file__).resolve().parent.parent
TOOLS = "resources/llama.cpp/bin"


SMOKE = ["-n", "24", "-no-cnv", "--temp", "0", "--no-warmup", "--simple-io", "--check-tensors"]


def merge(out: str, up: dict[str, str], options: dict) -> list[str]:
    """mergekit, from a file."""
    places = {role.removeprefix("model "): f"./{path}" for role, path in up.items()}
    text = yaml.safe_dump(substitute_references(options["merge"], places))
    typed = ["mergekit-yaml", "merge.yaml", out, "--random-seed", "42"]
    return [f"cat > merge.yaml <<'END'\n{text}END", shlex.join(typed)]


def convert(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The converter, and a few words from what it has made."""
    kind = ["--outtype", options["outtype"], "--model-name", options["model_name"]]
    typed = [sys.executable, "resources/llama.cpp/convert_hf_to_gguf.py", up["model"], *kind]
    return [shlex.join([*typed, "--outfile", out]), smoke(out)]


def imatrix(out: str, up: dict[str, str], options: dict) -> list[str]:
    """llama-imatrix."""
    flags = [*imatrix_flags(options), "--output-format", "dat", "-t", "1", "-o", out]
    return [tool("llama-imatrix", "-m", up["gguf"], "-f", up["corpus"], *flags)]


def quantize(out: str, up: dict[str, str], options: dict) -> list[str]:
    """llama-quantize."""
    matrix = ["--imatrix", up["imatrix"]] if "imatrix" in up else []
    flags = [*matrix, *quantize_flags(options)]
    return [tool("llama-quantize", *flags, up["gguf"], out, options["type"], "2")]


def split(out: str, up: dict[str, str], options: dict) -> list[str]:
    """llama-gguf-split."""
    size, prefix = options["split_max_size"], f"{out}/{Path(up['gguf']).stem}"
    typed = tool("llama-gguf-split", "--split", "--split-max-size", size, up["gguf"], prefix)
    return [f"mkdir -p {shlex.quote(out)}", typed]


def base_logits(out: str, up: dict[str, str], options: dict) -> list[str]:
    """llama-perplexity, of the unquantized model."""
    flags = [*context_flags(options), "-f", up["corpus"], "--kl-divergence-base", out]
    return [tool("llama-perplexity", "-t", "1", "-m", up["gguf"], *flags)]


def evaluate(out: str, up: dict[str, str], options: dict) -> list[str]:
    """llama-perplexity against it, and a few words from the form."""
    flags = ["-c", str(options["context"]), "--kl-divergence-base", up["base"], "--kl-divergence"]
    measured = tool("llama-perplexity", "-t", "1", "-m", up["gguf"], *flags)
    return [f"{measured} > {shlex.quote(out)}", smoke(up["gguf"])]


def tool(name: str, *words: str) -> str:
    """A command line of llama.cpp."""
    return shlex.join([f"{TOOLS}/{name}", *words])


def smoke(gguf: str) -> str:
    """The command line that loads a GGUF and lets it write a few words."""
    return tool("llama-completion", "-m", gguf, *SMOKE)


# What a person would type for an artifact, by its rule; reports and cards nobody types.
STEPS = (merge, convert, imatrix, quantize, split, base_logits, evaluate)
TYPED = {step.__name__: step for step in STEPS}


def commands(artifact: Artifact) -> list[str]:
    """The command lines of an artifact; none for what nobody types."""
    up = {role: made_from.path for role, made_from in artifact.inputs.items()}
    typed = TYPED.get(artifact.rule)
    return typed(artifact.path, up, artifact.options) if typed else []


def script(graph: Graph) -> str:
    """The shell script of a whole config, in the order in which the config declares."""
    lines = ["set -e", "export OMP_WAIT_POLICY=PASSIVE"]
    for artifact in graph:
        if typed := commands(artifact):
            lines += [f"mkdir -p {shlex.quote(str(Path(artifact.path).parent))}", *typed]
    return "\n".join(
        f"{line} </dev/null" if "<<" not in line and "mkdir" not in line else line for line in lines
    )


def timed(command: list[str], directory: Path) -> float:
    """Seconds of wall time; the command's output is left in DIRECTORY.log.

    Raises UserError where the command fails.
    """
    log = directory.with_suffix(".log")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    begin = time.monotonic()
    with open(log, "w") as file:
        done = subprocess.run(
            command, cwd=directory, stdout=file, stderr=file, env={**os.environ, "PATH": path}
        )
    if done.returncode:
        raise UserError(f"{command[0]} failed; see {log}")
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ready", type=Path, required=True, help="a working directory with resources/"
    )
    parser.add_argument("--configfile", type=Path, default=ROOT / "config/config.yaml")
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    ready = arguments.ready.resolve()
    places = [ready.with_name(f"{ready.name}-{kind}") for kind in ("shell", "snakemake")]
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copytree(ready / "resources", place / "resources", symlinks=True)
    os.chdir(places[0])
    config, _ = load(yaml.safe_load(arguments.configfile.read_text()), Path.cwd())
    (places[0] / "build.sh").write_text(script(Graph(config, Contents(), Lock())))
    shell = timed(["bash", "build.sh"], places[0])
    build = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "Snakefile"),
        "--cores",
        str(arguments.cores),
    ]
    mill = timed([*build, "--configfile", str(arguments.configfile.resolve())], places[1])
    print(f"shell script {shell:.1f} s, snakemake {mill:.1f} s, ratio {mill / shell:.2f}")


if __name__ == "__main__":
    program(main)

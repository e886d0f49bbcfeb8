"""Compare the time of a whole build with that of a shell script of the same tool calls.

    python dev/bench_overhead.py --ready DIR [--configfile FILE] [--cores 2]

DIR is a working directory in which resources/ is built (tools and sources). The script and
Snakemake build everything else in the new directories DIR-shell and DIR-snakemake, one after the
other. Prints both wall times in seconds and their ratio.
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
from lib.record.contents import Contents

ROOT = Path(__file__).resolve().parent.parent
TOOLS = "resources/llama.cpp/bin"


SMOKE = ["-n", "24", "-no-cnv", "--temp", "0", "--no-warmup", "--simple-io", "--check-tensors"]


def merge(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The commands of a merge: write merge.yaml, run mergekit."""
    places = {role.removeprefix("model "): f"./{path}" for role, path in up.items()}
    text = yaml.safe_dump(substitute_references(options["merge"], places))
    typed = ["mergekit-yaml", "merge.yaml", out, "--random-seed", "42"]
    return [f"cat > merge.yaml <<'END'\n{text}END", shlex.join(typed)]


def convert(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The commands of a conversion: llama.cpp's converter, then a few tokens from its GGUF."""
    kind = ["--outtype", options["outtype"], "--model-name", options["model_name"]]
    typed = [sys.executable, "resources/llama.cpp/convert_hf_to_gguf.py", up["model"], *kind]
    return [shlex.join([*typed, "--outfile", out]), smoke(out)]


def imatrix(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The command of an importance matrix: llama-imatrix."""
    flags = [*imatrix_flags(options), "--output-format", "dat", "-t", "1", "-o", out]
    return [tool("llama-imatrix", "-m", up["gguf"], "-f", up["corpus"], *flags)]


def quantize(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The command of a quant: llama-quantize."""
    matrix = ["--imatrix", up["imatrix"]] if "imatrix" in up else []
    flags = [*matrix, *quantize_flags(options)]
    return [tool("llama-quantize", *flags, up["gguf"], out, options["type"], "2")]


def split(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The commands of shards: make their directory, run llama-gguf-split."""
    size, prefix = options["split_max_size"], f"{out}/{Path(up['gguf']).stem}"
    typed = tool("llama-gguf-split", "--split", "--split-max-size", size, up["gguf"], prefix)
    return [f"mkdir -p {shlex.quote(out)}", typed]


def base_logits(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The command of base logits: llama-perplexity on the unquantized model."""
    flags = [*context_flags(options), "-f", up["corpus"], "--kl-divergence-base", out]
    return [tool("llama-perplexity", "-t", "1", "-m", up["gguf"], *flags)]


def evaluate(out: str, up: dict[str, str], options: dict) -> list[str]:
    """The commands of an evaluation: llama-perplexity, then a few tokens from the form."""
    flags = ["-c", str(options["context"]), "--kl-divergence-base", up["base"], "--kl-divergence"]
    measured = tool("llama-perplexity", "-t", "1", "-m", up["gguf"], *flags)
    return [f"{measured} > {shlex.quote(out)}", smoke(up["gguf"])]


def tool(name: str, *words: str) -> str:
    """The command line of one of llama.cpp's tools, quoted for a shell."""
    return shlex.join([f"{TOOLS}/{name}", *words])


def smoke(gguf: str) -> str:
    """The command line that loads a GGUF file and generates a few tokens."""
    return tool("llama-completion", "-m", gguf, *SMOKE)


# By rule, the functions above: (path of the artifact, {role: path of an input}, options) ->
# command lines. Reports and cards have none.
STEPS = {
    step.__name__: step
    for step in (merge, convert, imatrix, quantize, split, base_logits, evaluate)
}


def script(graph: Graph) -> str:
    """The shell script that makes all artifacts of a config, each after its inputs."""
    lines = ["set -e", "export OMP_WAIT_POLICY=PASSIVE"]
    for artifact in graph:
        if typed := STEPS.get(artifact.rule):
            up = {role: made_from.path for role, made_from in artifact.inputs.items()}
            lines.append(f"mkdir -p {shlex.quote(str(Path(artifact.path).parent))}")
            lines += typed(artifact.path, up, artifact.options)
    return "\n".join(
        f"{line} </dev/null" if "<<" not in line and "mkdir" not in line else line for line in lines
    )


def timed(command: list[str], directory: Path) -> float:
    """The wall time in seconds of a command in a directory. Its output goes into DIRECTORY.log.

    Raises UserError if the command fails.
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
        "--ready", type=Path, required=True, help="working directory with resources/"
    )
    parser.add_argument(
        "--configfile",
        type=Path,
        default=ROOT / "config/config.yaml",
        help="config, YAML with the keys of config/README.md (default: the embedded one)",
    )
    parser.add_argument("--cores", type=int, default=2, help="threads for Snakemake (default: 2)")
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
    build = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile")]
    build += ["--cores", str(arguments.cores)]
    build += ["--configfile", str(arguments.configfile.resolve())]
    mill = timed(build, places[1])
    print(f"shell script {shell:.1f} s, snakemake {mill:.1f} s, ratio {mill / shell:.2f}")


if __name__ == "__main__":
    program(main)

"""Compare mixes with llama-quantize's presets of the same size, and print what was found.

    python dev/mixes.py --directory DIR --configfile FILE [--at IQ2_M Q4_K_M …] [-- OPTIONS]

FILE: a config of models with gguf.imatrix and evaluate, without quants. In DIR each model is built
with the presets, then with a mix of exactly so many bytes for each; OPTIONS go to Snakemake. Prints
a Markdown table of mean KLD in nats a token on the evaluation text; the difference and its error
are those of the same chunks. Then the seconds of the steps.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from lib.errors import UserError, program

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("IQ2_M", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K")
HEAD = ("model", "at the size of", "bytes", "preset", "mix", "expected", "difference", "less")


def build(directory: Path, config: dict, options: list[str]) -> float:
    """Build a config in a directory. Returns the seconds. Raises UserError if Snakemake fails."""
    file = directory / "mixes.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(directory), *options, "--configfile", str(file.resolve())]
    began = time.monotonic()
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise UserError("the build failed; what it printed is above")
    return time.monotonic() - began


def measured(directory: Path, model: str, form: str) -> list[float]:
    """The mean KLD of each chunk."""
    file = directory / f"results/{model}/evaluation/{form}.json"
    return json.loads(file.read_text())["per_chunk"]["kld"]


def row(directory: Path, model: str, preset: str) -> list[str]:
    """The row of one model at one size."""
    theirs, ours = (measured(directory, model, f) for f in (preset, f"Mix-{preset}"))
    deltas = [ours_ - theirs_ for ours_, theirs_ in zip(ours, theirs, strict=True)]
    error = stdev(deltas) / len(deltas) ** 0.5
    record = directory / f"results/{model}/mixes/Mix-{preset}.txt.recipe.json"
    expected = json.loads(record.read_text())["notes"]["expected"]
    size = (directory / f"results/{model}/gguf/{model}-{preset}.gguf").stat().st_size
    figures = [f"{value:.5f}" for value in (mean(theirs), mean(ours), expected)]
    less = f"{100 * (1 - mean(ours) / mean(theirs)):.0f}%"
    return [model, preset, f"{size:,}", *figures, f"{mean(deltas):+.5f} ± {error:.5f}", less]


def seconds(directory: Path, model: str, pattern: str) -> float:
    """Wall seconds of a model's steps, by Snakemake's benchmarks."""
    files = (directory / "benchmarks" / model).glob(pattern)
    return sum(float(file.read_text().splitlines()[1].split("\t")[0]) for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, required=True, help="working directory")
    parser.add_argument("--configfile", type=Path, required=True, help="config without quants")
    parser.add_argument("--at", nargs="+", default=SIZES, help="presets (default: seven of them)")
    parser.add_argument("options", nargs="*", help="after --: options for Snakemake")
    args = parser.parse_args()
    config = yaml.safe_load(args.configfile.read_text())
    models = [name for name, model in config["models"].items() if "gguf" in model]
    ggufs = {name: config["models"][name]["gguf"] for name in models}
    how = {name: gguf.pop("mixes", {}) for name, gguf in ggufs.items()}
    for gguf in ggufs.values():
        gguf["quants"] = list(args.at)
    times = {"the presets": build(args.directory, config, args.options)}
    for name in models:
        sizes = (args.directory / f"results/{name}/gguf/{name}-{at}.gguf" for at in args.at)
        mixes = zip(args.at, sizes, strict=True)
        ggufs[name]["quants"] += [
            {"name": f"Mix-{at}", "target_size": file.stat().st_size} for at, file in mixes
        ]
        ggufs[name]["mixes"] = how[name]
    times["the mixes"] = build(args.directory, config, args.options)
    print(f"| {' | '.join(HEAD)} |\n| --- | --- |{' --: |' * (len(HEAD) - 2)}")
    for name in models:
        for preset in args.at:
            print(f"| {' | '.join(row(args.directory, name, preset))} |")
    for what, took in times.items():
        print(f"\n{what}: built in {took:.0f} s")
    for name in models:
        sensitivity = seconds(args.directory, name, "sensitivity.json.tsv")
        quants = seconds(args.directory, name, "gguf/*-Mix-*.tsv")
        print(f"{name}: sensitivity {sensitivity:.0f} s, quants by mixes {quants:.0f} s")


if __name__ == "__main__":
    program(main)

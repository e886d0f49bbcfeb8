"""Print what many models need of a cluster: jobs, memory, time, GPU hours and disk.

    python dev/scaling.py --models 100 --config docs/scaling.yaml

The config, YAML with the keys of config/README.md, declares one model. The directories that its
merge names are written as Llamas of 70B, of whose files only the headers are written. Memory and
times are those that jobs request: limits, which most jobs stay well under. Prints the tables of
docs/scaling.md.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from lib.config.load import load
from lib.errors import program
from lib.forecast import resources
from lib.forecast.machine import Machine
from lib.forecast.sizes import Sizes
from lib.formats.merge_references import merge_references
from lib.formats.weights import llama_weights
from lib.hub.lock import Lock
from lib.planning.graph import Graph
from lib.record.artifact import Artifact
from lib.record.contents import Contents
from lib.stages.registry import STAGES

ROOT = Path(__file__).resolve().parent.parent
SHAPE = {
    "layers": 80, "hidden": 8192, "ffn": 28672, "vocabulary": 128256, "heads": 64, "kv_heads": 8,
}  # fmt: skip
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": SHAPE["layers"],
    "num_attention_heads": SHAPE["heads"],
    "num_key_value_heads": SHAPE["kv_heads"],
    "vocab_size": SHAPE["vocabulary"],
}
GB, TB = 1e9, 1e12


def write_sources(config: dict) -> None:
    """Write the model directories and texts that a config names; of weights only the headers."""
    header, at = {}, 0
    for name, shape in llama_weights(**SHAPE).tensors.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    data = json.dumps(header).encode()
    for model in config["models"].values():
        for part in (part for found in merge_references(model["merge"]) for part in found.parts):
            Path(part).mkdir(exist_ok=True)
            Path(part, "config.json").write_text(json.dumps(CONFIG))
            with Path(part, "model.safetensors").open("wb") as file:
                file.write(len(data).to_bytes(8, "little") + data)
                file.truncate(8 + len(data) + at)
    for corpus in config["corpora"].values():
        Path(corpus["path"]).write_text("word " * 1_000_000)


def jobs_table(groups: dict[str, list[Artifact]], sizes: Sizes, models: int) -> list[str]:
    """The Markdown table of jobs: for each stage their number and what the largest requests.

    groups: {rule: artifacts of one model}. models: how many models there are.
    """
    lines = [
        "| step | jobs | memory, GB | time limit, h | GPUs | GPU hours | core hours |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    all_jobs, all_gpu, all_core = 0, 0.0, 0.0
    for rule, group in groups.items():
        stage, asked = STAGES[rule], []
        for artifact in group:
            read = sizes.read_by(artifact, stage.reads)
            cards = resources.gpus(stage, read)
            minutes = resources.runtime_min(
                stage, read, 1, resources.tokens_of(artifact), cards > 0
            )
            asked.append(
                (
                    resources.mem_mb(stage, read),
                    minutes / 60,
                    cards,
                    Machine().threads(stage, read, 1),
                )
            )
        count = len(group) * models
        gpu = models * sum(hours * cards for _, hours, cards, _ in asked)
        core = models * sum(hours * threads for _, hours, _, threads in asked)
        memory, hours, cards, _ = (max(column) for column in zip(*asked, strict=True))
        lines.append(
            f"| {rule} | {count:,} | {memory / 1000:.0f} | {hours:.1f} | {cards or ''} "
            f"| {f'{gpu:,.0f}' if gpu else ''} | {core:,.0f} |"
        )
        all_jobs, all_gpu, all_core = all_jobs + count, all_gpu + gpu, all_core + core
    return [*lines, f"| all | {all_jobs:,} | | | | {all_gpu:,.0f} | {all_core:,.0f} |"]


def disk_table(groups: dict[str, list[Artifact]], sizes: Sizes, models: int) -> list[str]:
    """The Markdown table of disk: for each stage the GB of one model and the TB of all.

    groups: {rule: artifacts of one model}. models: how many models there are.
    """
    lines = ["| on disk | a model, GB | all, TB |", "| --- | --: | --: |"]
    kept = passing = 0
    for rule, group in groups.items():
        total = sum(sizes.of(artifact).bytes for artifact in group)
        temporary = group[0].temporary
        kept, passing = kept + total * (not temporary), passing + total * temporary
        if total >= GB:
            name = f"{rule} ({len(group)})" if len(group) > 1 else rule
            name += ", deleted once it is used" if temporary else ""
            lines.append(f"| {name} | {total / GB:,.0f} | {models * total / TB:,.1f} |")
    lines.append(f"| kept in the end | {kept / GB:,.0f} | {models * kept / TB:,.1f} |")
    return [*lines, f"| besides, while it is built | {passing / GB:,.0f} | |"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=100, help="number of models (default: 100)")
    parser.add_argument(
        "--config", type=Path, default=ROOT / "docs/scaling.yaml", help="YAML of one model"
    )
    given = parser.parse_args()
    raw = yaml.safe_load(given.config.read_text())
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        write_sources(raw)
        config, _ = load(raw, Path())
        graph = Graph(config, Contents(), Lock())
        sizes = Sizes(graph, graph.lock)
        groups: dict[str, list[Artifact]] = {}
        for artifact in graph:
            if STAGES[artifact.rule].column != "report":
                groups.setdefault(artifact.rule, []).append(artifact)
        print("\n".join(jobs_table(groups, sizes, given.models)), end="\n\n")
        print("\n".join(disk_table(groups, sizes, given.models)))
        os.chdir(ROOT)


if __name__ == "__main__":
    program(main)

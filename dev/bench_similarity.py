"""Measure what comparing task vectors takes: time, memory, and how fast the disk is.

    python dev/bench_similarity.py DIRECTORY --layers 2 4 8 --models 2

Writes a base and fine-tunes with the shapes of an 8B Llama (hidden size 4096, feed-forward 14336,
128256 tokens), of so many layers, of random bfloat16 numbers in shards of at most 5 GB, into
DIRECTORY, and deletes them again. scripts/similarity.py is run on each with its files out of the
page cache, with and without effective ranks; before that the files are read once, by as many
processes and in pieces of the same size, and nothing else done. Prints a Markdown table.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from lib.errors import program
from lib.formats.weights import llama_weights
from similarity import SEGMENT

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SHAPE = {"hidden": 4096, "ffn": 14336, "vocabulary": 128256, "heads": 32, "kv_heads": 8}
SHARD = 5 * 10**9
PIECE = 1 << 24  # weights that are drawn at once


def write_model(directory: Path, layers: int, seed: int) -> None:
    """Write config.json and sharded safetensors, in the order in which transformers saves them."""
    tensors = llama_weights(layers, **SHAPE).tensors
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in tensors.items():
        needed = 2 * int(np.prod(shape))
        if size and size + needed > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += needed
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    draw, names = np.random.default_rng(seed), {}
    for number, shard in enumerate(shards, 1):
        file = directory / f"model-{number:05}-of-{len(shards):05}.safetensors"
        names |= dict.fromkeys(shard, file.name)
        _write(file, shard, draw)
    index = {"weight_map": names}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _write(file: Path, shard: dict[str, tuple[int, ...]], draw: np.random.Generator) -> None:
    header, end = {}, 0
    for name, shape in shard.items():
        first, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end // 2, PIECE):
            bits = draw.integers(0, 1 << 16, min(PIECE, end // 2 - start), np.uint16)
            # Any sign and fraction, exponents of 2^-7 and 2^-6: about what weights are.
            out.write(((bits & 0x80FF) | 0x3C00).tobytes())
        out.flush()
        os.fsync(out.fileno())


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_only(files: list[Path], processes: int) -> float:
    """Seconds that reading the files takes."""
    pieces = [(f, at) for f in files for at in range(0, f.stat().st_size, SEGMENT)]

    def read(piece: tuple[Path, int]) -> None:
        with piece[0].open("rb", buffering=0) as file:
            file.seek(piece[1])
            file.read(SEGMENT)

    start = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:  # they wait for the disk, and not for each other
        list(pool.map(read, pieces))
    return time.perf_counter() - start


def resident(program: int) -> int:
    """Memory in KiB that a program and its processes have now; what they share counts once."""
    try:
        children = Path(f"/proc/{program}/task/{program}/children").read_text().split()
        texts = [Path(f"/proc/{p}/smaps_rollup").read_text() for p in (program, *children)]
    except OSError:
        return 0  # one of them has just ended
    return sum(int(kib) for text in texts for kib in re.findall(r"^Pss:\s+(\d+)", text, re.M))


def compared(models: list[Path], processes: int, probes: int) -> tuple[float, float, float]:
    """(seconds, core seconds, MiB at the most) of scripts/similarity.py."""
    base, *tunes = models
    command = [sys.executable, SCRIPTS / "similarity.py", "--base", "base", base]
    for tune in tunes:
        command += ["--model", tune.name, tune]
    command += ["--processes", processes, "--probes", probes, "--output", os.devnull]
    start = time.perf_counter()
    child = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    memory = 0
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        memory = max(memory, resident(child.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise subprocess.CalledProcessError(status, command)
    return seconds, used.ru_utime + used.ru_stime, memory / 1024


def rows(directory: Path, layers: list[int], tunes: int, processes: int) -> Iterator[list[str]]:
    """The rows of the table."""
    for count in layers:
        models = [directory / f"bench-{n}" for n in ("base", *range(1, tunes + 1))]
        try:
            for seed, model in enumerate(models):
                write_model(model, count, seed)
            files = [file for model in models for file in sorted(model.glob("*.safetensors"))]
            size = sum(file.stat().st_size for file in files) / 1e9
            forget(files)
            alone = read_only(files, processes)
            for probes in (16, 0):
                forget(files)
                seconds, cpu, memory = compared(models, processes, probes)
                yield [
                    *(str(count), f"{size:.2f}", "yes" if probes else "no", f"{seconds:.1f}"),
                    *(f"{size / seconds:.2f}", f"{size / alone:.2f}", f"{cpu / size:.2f}"),
                    f"{memory:.0f}",
                ]
        finally:
            for model in models:
                shutil.rmtree(model, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8], help="of the models")
    parser.add_argument("--models", type=int, default=2, help="fine-tunes, besides the base")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="that read and compute"
    )
    args = parser.parse_args()
    head = ["layers", "GB", "ranks", "s", "GB/s", "GB/s of reading alone", "core s a GB", "MiB"]
    for row in (head, ["--:"] * len(head)):
        print(f"| {' | '.join(row)} |")
    for row in rows(args.directory, args.layers, args.models, args.processes):
        print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{args.models} fine-tunes and a base, {args.processes} processes")


if __name__ == "__main__":
    program(main)

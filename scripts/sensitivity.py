"""Measure what each tensor of a model loses in each type: sensitivity.json, for mixes.

Every type is tried on all tensors (llama-quantize --pure), which gives each tensor's error,
weighted by the importance matrix. What such an error costs is measured by KL divergence on the
first half of the text: with one kind of tensor in some neighbouring layers in the probe's type, all
else unquantized. Any change in a layer makes all behind it round otherwise. How much of the KL
divergence that is, a small tensor tells that is stored in f32, with the same weights. Some types
make all weights a little larger or smaller, which costs more than its share of the error: how much
more, each kind of tensor tells in the type that does so most, in all layers at once.
lib/mixes/sensitivity.py describes the JSON; docs/mixes.md says how good this is.

An interrupted run of the same recipe goes on with what WORK holds, which is removed at the end.
"""

import argparse
import json
import os
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.errors import program
from lib.formats.fallbacks import shape_of
from lib.formats.gguf_file import read_gguf
from lib.formats.imatrix_file import ImatrixEntry, read_imatrix
from lib.mixes.candidates import Candidates, candidates, has_data
from lib.mixes.damage import errors
from lib.mixes.measuring import CONTEXT, Bench, Machine, halves
from lib.mixes.parts import Parts
from lib.mixes.quantizing import quantize_pure
from lib.mixes.sensitivity import (
    biased_kinds,
    document,
    groups_of,
    most_biased,
    probe_of,
    smallest_of_layers,
)
from lib.mixes.sharing import copies

ALL_LAYERS = 99


class State:
    """What was measured until now, in WORK/state.json; all of it is of one recipe.

    types: {type: {tensor: [its type, its error, its bias]}}. pure, groups, layers, kinds: {type,
    group, layer or kind of tensor: KLD}.
    """

    def __init__(self, work: Path, digest: str):
        self._file = work / "state.json"
        whats = ("types", "pure", "groups", "layers", "kinds")
        self.content: dict[str, Any] = {"digest": digest} | {what: {} for what in whats}
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if known.get("digest") == digest:
            self.content = known
        else:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)

    def note(self, what: str, name: str, found: Any) -> None:
        """Keep a measurement, also if the next moment ends this process."""
        self.content[what][name] = found
        unfinished = self._file.with_name(".state.json")
        unfinished.write_text(json.dumps(self.content), encoding="utf-8")
        os.replace(unfinished, self._file)


def measure_types(
    state: State,
    bench: Bench,
    parts: Parts,
    imatrix: Path,
    matrix: Mapping[str, ImatrixEntry],
    found: Candidates,
    types: list[str],
) -> None:
    """Quantize to each type, note the tensors' errors and the KLD, and keep parts of the probes.

    matrix: what `imatrix` holds. found: the types that each tensor can have.
    """
    base, probe = parts.base, probe_of(types)
    parts.add(base)
    for number, kind in enumerate(types, 1):
        print(f"sensitivity: type {kind}, {number} of {len(types)}", flush=True)
        if kind in state.content["pure"]:
            continue
        spared = [name for name in found if not has_data(name, kind, matrix)]
        made = bench.logits.with_name("pure.gguf")
        file = quantize_pure(bench.machine, base, imatrix, kind, spared, made)
        state.note("types", kind, errors(base, file, matrix, set(found)))
        if kind in (probe, most_biased(state.content["types"])):
            parts.add(file)
        state.note("pure", kind, bench.kld(made))
        made.unlink()


def measure(
    state: State, bench: Bench, parts: Parts, what: str, mixes: Mapping[str, Mapping[str, str]]
) -> None:
    """Note the KLD of each of these mixes, {name: {tensor: type}}, all else unquantized.

    what: what they are called in the state.
    """
    known = state.content[what]

    def kld(name: str) -> float:
        directory = bench.logits.parent / "mixes" / name
        found = bench.kld(parts.link(mixes[name], directory), alone=False)
        shutil.rmtree(directory)
        return found

    for name, found in bench.each([name for name in mixes if name not in known], kld):
        state.note(what, name, found)
        print(f"sensitivity: {what} {len(known)} of {len(mixes)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the unquantized GGUF file")
    parser.add_argument("--imatrix", type=Path, required=True, help="its importance matrix")
    parser.add_argument("--text", type=Path, required=True, help="calibration text, UTF-8")
    parser.add_argument("--corpus", required=True, help="name of the text, for the JSON")
    parser.add_argument("--chunks", type=int, required=True, help=f"of {CONTEXT} tokens, to read")
    parser.add_argument("--types", required=True, help="tensor types to try: q4_k,q6_k,…")
    parser.add_argument("--tools", type=Path, required=True, help="directory of llama.cpp's tools")
    parser.add_argument("--threads", type=int, required=True, help="threads of all that runs")
    parser.add_argument(
        "--side-by-side", type=int, default=1, help="measurements at once on the CPU (default: 1)"
    )
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that are used (default: 0)")
    parser.add_argument(
        "--work", type=Path, required=True, help="directory that no other step uses"
    )
    parser.add_argument("--recipe-digest", required=True, help="text that names the recipe")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()

    # A part of each tensor is open at once, of a large mixture of experts more than 1024.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    state, types = State(args.work, args.recipe_digest), args.types.split(",")
    base = read_gguf(args.model)
    shape = shape_of(base.metadata)
    tensors = {tensor.name: tensor.shape for tensor in base.tensors}
    matrix = read_imatrix(args.imatrix).entries
    found = candidates(tensors, shape, types, matrix)
    text = args.work / "text.txt"
    halves(args.text, text, args.work / "rest.txt")
    machine = Machine(args.tools, args.threads, 0, args.side_by_side)
    if args.gpus:
        at_once = args.gpus * copies(args.model.stat().st_size)
        machine = Machine(args.tools, args.threads, ALL_LAYERS, at_once)
    bench = Bench(machine, args.model, text, args.chunks, args.work / "base.kld")
    parts = Parts(args.work / "parts", base)
    measure_types(state, bench, parts, args.imatrix, matrix, found, types)
    groups, probe, changes = groups_of(found), probe_of(types), state.content["types"]
    smallest = smallest_of_layers(groups, {tensor.name: tensor.elements for tensor in base.tensors})
    for name in smallest.values():
        parts.widen(name)

    def put_in(kind: str, names: list[str]) -> dict[str, str]:
        return {name: changes[kind][name][0] for name in names}

    widened = {str(layer): {name: "f32"} for layer, name in smallest.items()}
    measure(state, bench, parts, "layers", widened)
    probes = {group: put_in(probe, names) for group, names in groups.items()}
    measure(state, bench, parts, "groups", probes)
    kinds, biased = biased_kinds(changes, probe).items(), most_biased(changes)
    measure(state, bench, parts, "kinds", {kind: put_in(biased, names) for kind, names in kinds})

    klds, of_kinds, pure = (state.content[what] for what in ("groups", "kinds", "pure"))
    rounding = {int(layer): kld for layer, kld in state.content["layers"].items()}
    made = document(found, changes, groups, probe, klds, of_kinds, rounding, pure)
    head = {"engine": "llama.cpp", "corpus": args.corpus, "context": CONTEXT, "chunks": args.chunks}
    args.output.write_text(json.dumps(head | made, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(args.work)


if __name__ == "__main__":
    program(main)

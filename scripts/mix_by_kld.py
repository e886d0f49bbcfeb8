"""Find the smallest mix whose KL divergence, measured on the validation text, is at most so much.

A mix is chosen by what sensitivity.json lets one expect, quantized and measured; the next try is
corrected by what was measured. At most TRIES are made. OUTPUT has a line NAME=TYPE a tensor, as
llama-quantize's --tensor-type-file takes it. The notes are those of mix.py, where they make sense
without a budget, and {kld: as measured, error: its standard error, tries: [{bytes, expected, kld}],
validation: name of the text}.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.divergence import mean_and_error
from lib.formats.gguf_file import read_gguf
from lib.mixes.candidates import overhead
from lib.mixes.choice import Mix, best_within, smallest_within, total
from lib.mixes.files import write_mix
from lib.mixes.measuring import CONTEXT, Bench, Machine, halves
from lib.mixes.quantizing import quantize_mix
from lib.mixes.sensitivity import Sensitivity, read
from lib.mixes.targets import TRIES

CLOSE = 0.95  # of the limit: a try between that and the limit is good enough
MARGIN = 0.98  # of the limit, which later tries aim at


def aimed(known: Sensitivity, kld: float) -> Mix:
    """The smallest mix that is expected to have at most this KLD; the best there is if none has."""
    low, high = math.log(1e-9), math.log(1e3)
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if known.expected(math.exp(middle)) <= kld else (low, middle)
    return smallest_within(known.choices, math.exp(low)) or best_within(known.choices, 1 << 62)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the unquantized GGUF file")
    parser.add_argument("--sensitivity", type=Path, required=True, help="its sensitivity.json")
    parser.add_argument("--imatrix", type=Path, required=True, help="its importance matrix")
    parser.add_argument("--max-kld", type=float, required=True, help="nats a token, at most")
    parser.add_argument("--text", type=Path, required=True, help="validation text, UTF-8")
    parser.add_argument("--half", action="store_true", help="read only its second half")
    parser.add_argument("--corpus", required=True, help="name of the text, for the notes")
    parser.add_argument("--chunks", type=int, required=True, help=f"of {CONTEXT} tokens, to read")
    parser.add_argument("--tools", type=Path, required=True, help="directory of llama.cpp's tools")
    parser.add_argument("--threads", type=int, required=True, help="threads of the tools")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers on a GPU (default: 0)")
    parser.add_argument("--notes", type=Path, help="JSON to write: what was found")
    parser.add_argument("--output", type=Path, required=True, help="the mix to write")
    args = parser.parse_args()

    base, known = read_gguf(args.model), read(args.sensitivity)
    beside = overhead(base, known.choices)
    tries: list[dict[str, float]] = []
    best: tuple[int, Mix, dict[str, float]] | None = None
    correction, aim = 1.0, args.max_kld
    with tempfile.TemporaryDirectory(dir=args.output.parent) as scratch:
        work = Path(scratch)
        text = args.text
        if args.half:
            text = work / "text.txt"
            halves(args.text, work / "first.txt", text)
        machine = Machine(args.tools, args.threads, args.gpu_layers)
        bench = Bench(machine, args.model, text, args.chunks, work / "base.kld")
        seen: list[Mix] = []
        while len(tries) < TRIES:
            mix = aimed(known, aim / correction)
            if mix in seen:
                break
            seen.append(mix)
            size, damage = total(known.choices, mix)
            made = work / "try.gguf"
            quantize_mix(machine, base, args.imatrix, mix, made)
            kld, error = mean_and_error(bench.scored(made).kld)
            made.unlink()
            expected = known.expected(damage)
            tries.append({"bytes": beside + size, "expected": expected, "kld": kld, "error": error})
            print(f"mix_by_kld: try {len(tries)} of {TRIES}: {tries[-1]}", flush=True)
            if kld <= args.max_kld and (best is None or size < best[0]):
                best = size, mix, tries[-1]
            if CLOSE * args.max_kld <= kld <= args.max_kld:
                break
            correction, aim = kld / expected, args.max_kld * MARGIN
    if best is None:
        least = min(tries, key=lambda tried: tried["kld"])
        raise UserError(
            f"max_kld: {args.max_kld:g} was not reached: the best of {len(tries)} mixes has "
            f"{least['kld']:.3g} on {args.corpus}; give more, or more `mixes.types`"
        )
    _, mix, found = best
    write_mix(args.output, mix)
    notes = found | {"tries": tries, "validation": args.corpus}
    if args.notes:
        args.notes.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    print(f"{args.output}: {len(mix)} tensors, {notes}")


if __name__ == "__main__":
    program(main)

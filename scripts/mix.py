"""Choose the type of each tensor: the mix that loses least within so many bytes.

What tensors lose is read from sensitivity.json; the sum of it is minimised exactly. OUTPUT has a
line NAME=TYPE a tensor, as llama-quantize's --tensor-type-file takes it. The notes are {budget,
bytes: of the file at most, damage, expected: the KLD to expect in nats a token, preset: {name,
expected}}, the last being the best of llama-quantize's own mixtures that is no larger.
"""

import argparse
import json
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.fallbacks import shape_of
from lib.formats.gguf_file import GgufFile, read_gguf
from lib.formats.memory import shape_of as memory_of
from lib.formats.mixture import quant_types
from lib.formats.quants import QUANT_TYPES
from lib.mixes.candidates import overhead
from lib.mixes.choice import Mix, best_within, total
from lib.mixes.files import write_mix
from lib.mixes.sensitivity import Sensitivity, read
from lib.mixes.targets import budget, impossible


def presets(base: GgufFile, known: Sensitivity) -> dict[str, Mix]:
    """{quant type: its mix}, for those whose types were all measured."""
    tensors, shape = {t.name: t.shape for t in base.tensors}, shape_of(base.metadata)
    found = {}
    for name, entry in QUANT_TYPES.items():
        if entry.alias_of or entry.lossless:
            continue
        types = quant_types(tensors, shape, name, {}, imatrix=True)
        mix = {tensor: kind for tensor, kind in types.items() if kind}
        if all(kind in known.choices.get(tensor, ()) for tensor, kind in mix.items()):
            found[name] = mix
    return found


def best_preset(base: GgufFile, known: Sensitivity, allowed: int) -> tuple[str, Mix] | None:
    """The preset of least damage within so many bytes of tensors, and its mix; None: none fits."""
    sums = {name: (total(known.choices, mix), mix) for name, mix in presets(base, known).items()}
    fitting = [(damage, name) for name, ((size, damage), _) in sums.items() if size <= allowed]
    return (name := min(fitting)[1], sums[name][1]) if fitting else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="the unquantized GGUF file")
    parser.add_argument("--sensitivity", type=Path, required=True, help="its sensitivity.json")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--target-size", type=int, help="bytes of the file, at most")
    target.add_argument("--target-bpw", type=float, help="bits of the file a weight, at most")
    target.add_argument("--memory", type=float, help="GB (2**30 bytes) in which it must run")
    parser.add_argument("--context", type=int, help="tokens that must fit into the memory too")
    parser.add_argument("--cache-type", default="f16", help="type of their cache (default: f16)")
    parser.add_argument("--notes", type=Path, help="JSON to write: what was found")
    parser.add_argument("--output", type=Path, required=True, help="the mix to write")
    args = parser.parse_args()

    base, known = read_gguf(args.model), read(args.sensitivity)
    given = {key: value for key, value in vars(args).items() if value is not None}
    parameters = sum(tensor.elements for tensor in base.tensors)
    allowed = budget(given, parameters, memory_of(args.model))
    beside = overhead(base, known.choices)
    mix = best_within(known.choices, allowed - beside)
    if mix is None:
        least = sum(min(size for size, _ in kinds.values()) for kinds in known.choices.values())
        raise UserError(f"{args.model}: {impossible(given, allowed, beside + least)}")
    size, damage = total(known.choices, mix)
    notes = {"budget": allowed, "bytes": beside + size, "damage": damage}
    notes["expected"] = known.expected(damage)
    if preset := best_preset(base, known, allowed - beside):
        name, of_preset = preset
        its = total(known.choices, of_preset)[1]
        notes["preset"] = {"name": name, "expected": known.expected(its)}
    write_mix(args.output, mix)
    if args.notes:
        args.notes.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    print(f"{args.output}: {len(mix)} tensors, {notes}")


if __name__ == "__main__":
    program(main)

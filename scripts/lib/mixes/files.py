"""The file of a mix: a line NAME=TYPE a tensor, as llama-quantize's --tensor-type-file takes it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from lib.errors import UserError
from lib.formats.quants import PURE, TENSOR_BITS

# {tensor type: the quant type that a file is called by if most of its tensors are in it}.
CALLED = PURE | {"q2_k": "Q2_K", "q3_k": "Q3_K_M", "q4_k": "Q4_K_M", "q5_k": "Q5_K_M"}
CALLED |= {"iq3_s": "IQ3_S", "iq2_s": "IQ2_M"}


def write_mix(path: Path, mix: Mapping[str, str]) -> None:
    """Write a mix, {tensor: type}.

    llama-quantize takes a name as a regular expression, and the first that it finds in a tensor's
    name. `output.weight` is also in `blk.0.attn_output.weight`, so it comes after the layers.
    """
    ordered = sorted(mix.items(), key=lambda entry: not entry[0].startswith("blk."))
    path.write_text("".join(f"{name}={kind}\n" for name, kind in ordered), encoding="utf-8")


def read_mix(path: Path) -> dict[str, str]:
    """Read a mix: {tensor: type}. Raises UserError if a line is not NAME=TYPE."""
    mix = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, kind = line.partition("=")
        if kind not in TENSOR_BITS:
            raise UserError(f"{path}:{number}: {line!r} is not NAME=TYPE")
        mix[name] = kind
    return mix


def called(mix: Mapping[str, str]) -> str:
    """The quant type that a file of this mix says it is: that of most of its tensors."""
    (kind, _), *_ = Counter(mix.values()).most_common(1)
    return CALLED[kind]

"""Quantizes a model by a mix, or to one type, with the stock llama-quantize."""

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from lib.errors import UserError
from lib.formats.gguf_file import GgufFile, read_gguf
from lib.formats.quants import PURE
from lib.mixes.candidates import FREER
from lib.mixes.files import called, write_mix
from lib.mixes.measuring import Machine


def quantize_mix(
    machine: Machine, base: GgufFile, imatrix: Path, mix: Mapping[str, str], to: Path
) -> None:
    """Write a GGUF file with these types, {tensor: type}. Raises UserError if the tool fails."""
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        file = Path(scratch) / "mix.txt"
        write_mix(file, mix)
        flags = ["--tensor-type-file", str(file)]
        _quantize(machine, base, imatrix, flags, called(mix), to)


def quantize_pure(
    machine: Machine, base: GgufFile, imatrix: Path, kind: str, spared: Iterable[str], to: Path
) -> GgufFile:
    """Quantize all tensors to one type.

    spared: those for which the type needs more data than there is; they get q8_0. Raises UserError
    if the tool fails.
    """
    options = dict(zip(FREER, ("--token-embedding-type", "--output-tensor-type"), strict=True))
    flags = ["--pure"]
    for name in spared:
        free = options.get(name)
        flags += [free, "q8_0"] if free else ["--tensor-type", f"{name}=q8_0"]
    _quantize(machine, base, imatrix, flags, PURE[kind], to)
    return read_gguf(to)


def _quantize(
    machine: Machine, base: GgufFile, imatrix: Path, flags: list[str], type_: str, to: Path
) -> None:
    command = [f"{machine.tools}/llama-quantize", "--imatrix", str(imatrix), *flags]
    command += [str(base.path), str(to), type_, str(machine.threads)]
    if subprocess.run(command).returncode:
        raise UserError(f"{base.path}: llama-quantize cannot make {type_}; its output is above")

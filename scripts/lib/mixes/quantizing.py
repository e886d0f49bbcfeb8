"""Quantizes a model by a mix, with the stock llama-quantize."""

import subprocess
import tempfile
from pathlib import Path

from lib.errors import UserError
from lib.formats.gguf_file import GgufFile
from lib.mixes.files import called, write_mix
from lib.mixes.measuring import Machine


def quantize_mix(machine: Machine, base: GgufFile, imatrix: Path, mix: dict[str, str], to: Path):
    """Write a GGUF file with these types, {tensor: type}. Raises UserError if the tool fails."""
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        file = Path(scratch) / "mix.txt"
        write_mix(file, mix)
        command = [f"{machine.tools}/llama-quantize", "--imatrix", str(imatrix)]
        command += ["--tensor-type-file", str(file), str(base.path), str(to), called(mix)]
        if subprocess.run([*command, str(machine.threads)]).returncode:
            raise UserError(f"{base.path}: llama-quantize fails with a mix; its output is above")

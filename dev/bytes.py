"""Build a small config with the real tools, and print the sha256 of each artifact.

    python dev/bytes.py DIRECTORY [--compressed-tensors] [--profile profiles/gpu] > here.txt

Its models, texts and one importance matrix consist of whole numbers, so that they are the same on
every machine. Each line is `SHA256 BOUND PATH`; BOUND is what the stage declares. Compare the lists
of two machines: what is bound to `anywhere` must be the same in both, if what it is made from is.
The model Given is made of what is the same everywhere alone.

    diff <(grep -v machine docs/bytes/x86-64.txt) <(grep -v machine here.txt)
"""

import argparse
import contextlib
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import yaml
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from lib.errors import UserError, program
from lib.formats.compressed_tensors import CALIBRATED, SCHEMES
from lib.formats.quants import QUANT_TYPES
from lib.record import recipe as recipes
from lib.record.bound import kind_of_machine, words
from lib.stages.registry import STAGES
from tiny_models import make_models, make_texts

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("base", "code", "prose")
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def drawn(seed: int, count: int) -> numpy.ndarray:
    """So many numbers of about a normal distribution of width 0.57: sums of whole numbers."""
    raw = numpy.random.PCG64(seed).random_raw(count)
    parts = ((raw >> (16 * part)).astype(numpy.uint16).astype(numpy.int64) for part in range(4))
    return (sum(parts) - 2 * 65535).astype(numpy.float32) / numpy.float32(2**16)


def make_sources(here: Path) -> None:
    """Write the models, the texts and given.dat into a directory."""
    import torch

    here.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(here):  # sentencepiece writes the path as it is given into the tokenizer
        make_models(Path("m"), *MODELS[1:])
    make_texts(here / "data", 100)
    for number, name in enumerate(MODELS):
        file, tensors = here / "m" / name / "model.safetensors", {}
        for at, (key, (shape, is_norm)) in enumerate(sorted(shapes(file).items())):
            size = int(numpy.prod(shape))
            base = drawn(at, size) + drawn(1000 * (number + 1) + at, size) / 8
            whole = base / 16 if not is_norm else 1 + base / 64
            tensors[key] = torch.from_numpy(whole.reshape(shape)).to(torch.bfloat16)
        save_file(tensors, file, metadata={"format": "pt"})
    entries = []
    for layer in range(2):
        for at, matrix in enumerate(MATRICES):
            width = 512 if matrix == "ffn_down" else 256
            name = f"blk.{layer}.{matrix}.weight".encode()
            values = numpy.abs(drawn(50 + 10 * layer + at, width)) + numpy.float32(2**-10)
            entries.append(struct.pack(f"<i{len(name)}sii", len(name), name, 1, width))
            entries.append(values.astype("<f4").tobytes())
    ends = struct.pack("<ii4s", 1, 4, b"text")
    (here / "given.dat").write_bytes(
        struct.pack("<i", 2 * len(MATRICES)) + b"".join(entries) + ends
    )


def shapes(file: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
    """{tensor: (its shape, whether it is a norm)}."""
    from lib.formats.safetensors import read_header

    found = read_header(file).tensors
    return {name: (tuple(tensor.shape), len(tensor.shape) == 1) for name, tensor in found.items()}


def configuration(compressed: bool) -> dict[str, Any]:
    """The config. compressed: with all schemes of compressed-tensors."""
    corpora = {name: {"path": f"data/{name}.txt"} for name in ("calibration", "evaluation")}
    types = [name for name, kind in QUANT_TYPES.items() if not (kind.lossless or kind.alias_of)]
    types.remove("MXFP4_MOE")  # of a dense model it is Q8_0
    types.remove("Q2_0")  # gguf 0.19.0 does not know it, and no report can be written
    given = {"source": "./m/base", "gguf": {"imatrix": {"file": "given.dat"}, "quants": types}}
    given["gguf"]["split_max_size"] = "1M"
    if compressed:
        schemes: list[Any] = [name for name in SCHEMES if name not in CALIBRATED]
        schemes.append({"scheme": "W4A16", "method": "gptq", "rows": 4, "length": 128})
        given["compressed_tensors"] = {"schemes": schemes}

    def merge(method: str, parameters: dict, each: dict, base: str | None) -> dict[str, Any]:
        models = ["base", "code"] if method == "slerp" else ["code", "prose"]
        entries = [{"model": f"./m/{name}", "parameters": dict(each)} for name in models]
        found = {"merge_method": method, "dtype": "bfloat16", "models": entries}
        return found | ({"base_model": base} if base else {}) | {"parameters": parameters}

    half, base = {"weight": 0.6}, "./m/base"
    merges = {
        "Linear": merge("linear", {}, half, None),
        "Slerp": merge("slerp", {"t": 0.4}, {}, base),
        "Ties": merge("ties", {}, half | {"density": 0.5}, base),
        "Dare": merge("dare_ties", {}, half | {"density": 0.5}, base),
        "Sce": merge("sce", {"select_topk": 0.8}, {}, base),
    }
    models = {
        name: {"merge": merged, "gguf": {"imatrix": False, "quants": ["BF16", "Q8_0"]}}
        for name, merged in merges.items()
    }
    models["Linear"]["gguf"] = {"imatrix": {"chunks": 4}, "quants": ["BF16", "Q4_K_M"]}
    models["Linear"]["evaluate"] = {"context": 128, "chunks": 3}
    return {"corpora": corpora, "models": {"Given": given, **models}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--compressed-tensors", action="store_true")
    parser.add_argument("--profile", type=Path, help="Snakemake's, such as profiles/gpu")
    parser.add_argument("--cores", default="all")
    asked = parser.parse_args()
    here = asked.directory
    if not (here / "given.dat").exists():
        make_sources(here)
    (here / "c.yaml").write_text(yaml.safe_dump(configuration(asked.compressed_tensors)))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", here, "--cores", asked.cores, "--configfile", here / "c.yaml"]
    command += ["--profile", asked.profile.resolve()] if asked.profile else []
    if subprocess.run([*map(str, command)], stdout=sys.stderr).returncode:
        raise UserError("the build failed; see above")
    print("\n".join(lines(here)))


def lines(here: Path) -> list[str]:
    """The kind of machine; `SHA256 BOUND PATH` of each source, and of each artifact in results/.

    Of those with a record, and without what only describes others.
    """
    found = [f"# machine: {words(kind_of_machine())}"]
    for record in sorted((here / "results").rglob(f"*{recipes.SUFFIX}")):
        path = record.relative_to(here).as_posix().removesuffix(recipes.SUFFIX)
        made = recipes.read(path, here)
        bound = STAGES[made.recipe["step"]].bound.value.split()[-1]
        if not path.endswith("README.md") and "/report/" not in path:
            found.append(f"{made.sha256[:32]} {bound:8} {path}")
    for record in sorted((here / "resources").glob(f"*/*{recipes.SUFFIX}")):
        path = record.relative_to(here).as_posix().removesuffix(recipes.SUFFIX)
        made = recipes.read(path, here)
        if made.recipe["step"] in ("source", "corpus"):
            told = made.recipe["sources"] if made.recipe["step"] == "source" else made.sha256
            found.append(f"{recipes.digest(told)[:32]} anywhere {path}")
    return found


if __name__ == "__main__":
    program(main)

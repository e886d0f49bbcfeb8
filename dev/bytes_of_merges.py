"""Merge by every method of mergekit, and print the sha256 of each merge's weights.

    python dev/bytes_of_merges.py DIRECTORY BASE MODEL MODEL

BASE, MODEL: directories of models, tiny ones for choice. Run it again under another environment
(ATEN_CPU_CAPABILITY=default, avx2, avx512; ONEDNN_MAX_CPU_ISA; MKL_ENABLE_INSTRUCTIONS), on another
machine, or with --cuda, and compare what it prints: docs/bytes.md.
"""

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import merge
from lib.errors import program

DTYPES = ("bfloat16", "float32")
# {method: parameters of the merge, parameters of each model}; all others have none.
PARAMETERS: dict[str, tuple[dict, dict]] = {
    "slerp": ({"t": 0.4}, {}),
    "nuslerp": ({}, {"weight": 0.6}),
    "nearswap": ({"t": 0.001}, {}),
    "multislerp": ({}, {"weight": 0.6}),
    "sce": ({"select_topk": 0.8}, {}),
    **dict.fromkeys(("linear", "task_arithmetic"), ({}, {"weight": 0.6})),
    **dict.fromkeys(("dare_linear", "dare_ties", "ties"), ({}, {"weight": 0.6, "density": 0.5})),
    **dict.fromkeys(
        ("della", "della_linear"), ({}, {"weight": 0.6, "density": 0.5, "epsilon": 0.1})
    ),
    **dict.fromkeys(
        ("breadcrumbs", "breadcrumbs_ties"), ({}, {"weight": 0.6, "density": 0.8, "gamma": 0.05})
    ),
}
PAIRS = ("slerp", "nearswap", "arcee_fusion")  # of the base and one model
ALONE = ("linear", "nuslerp", "multislerp", "karcher")  # without a base


def configuration(method: str, dtype: str, base: str, models: list[str]) -> dict[str, Any]:
    """A mergekit configuration for a method."""
    common, each = PARAMETERS.get(method, ({}, {}))
    chosen = [base, models[0]] if method in PAIRS else models[:1]
    chosen = chosen if method in (*PAIRS, "passthrough") else models
    found = {
        "merge_method": method,
        "dtype": dtype,
        "models": [{"model": model, "parameters": dict(each)} for model in chosen],
        "parameters": dict(common),
    }
    return found if method in (*ALONE, "passthrough") else found | {"base_model": base}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("base")
    parser.add_argument("models", nargs=2)
    parser.add_argument("--cuda", action="store_true")
    asked = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != merge.ENVIRONMENT["PYTHONHASHSEED"]:
        os.environ.update(merge.ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from mergekit import merge_methods

    asked.directory.mkdir(parents=True, exist_ok=True)
    for method in sorted(known.spec.name for known in merge_methods.registered_methods()):
        for dtype in DTYPES:
            config = configuration(method, dtype, asked.base, asked.models)
            said = weights(asked.directory, config, asked.cuda)
            print(f"{method:18} {dtype:9} {said}", flush=True)


def weights(here: Path, config: dict[str, Any], cuda: bool) -> str:
    """sha256 (hex) of the weights of a merge; why not, if mergekit refuses it."""
    output, file = here / "merge", here / "merge.yaml"
    shutil.rmtree(output, ignore_errors=True)
    file.write_text(yaml.safe_dump(config))
    words = ["--config", file, "--output", output, "--seed", 42, *(["--cuda"] if cuda else [])]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            merge.run(merge.command_line().parse_args([*map(str, words)]))
    except (SystemExit, Exception) as error:  # whatever a method wants that is not given here
        return f"not merged: {' '.join(str(error).split())[:100]}"
    files = sorted(output.glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


if __name__ == "__main__":
    program(main)

"""Extract a LoRA adapter from a model with mergekit-extract-lora: its difference from a base model.

The adapter is in peft's form. The same models and options give the same bytes every time. Paths of
this machine are left out, and so is mergekit's model card, which has the command line.
"""

import argparse
import json
import os
import sys
import traceback
from pathlib import Path

from lib.errors import UserError, program

# The bytes of a singular value decomposition depend on the number of torch's threads.
THREADS = 4
# To be set before Python and torch start; see scripts/merge.py.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_WAIT_POLICY": "PASSIVE"}


def extract(base: Path, model: Path, output: Path, options: list[str]) -> None:
    """Run mergekit-extract-lora. options: words of its command line. Raises UserError."""
    import torch
    from mergekit.scripts import extract_lora

    torch.set_num_threads(THREADS)
    # A relative path of a directory might be read as a hub's id.
    places = [str(place) if place.is_absolute() else f"./{place}" for place in (base, model)]
    words = ["--base-model", places[0], "--model", places[1], "--out-path", str(output)]
    words += ["--device", "cpu", *options]
    if not sys.stderr.isatty():
        words.append("--quiet")
    try:
        extract_lora.main.main([*words], standalone_mode=False)
    except Exception as error:
        traceback.print_exc()
        if "max() iterable argument is empty" in str(error) or "empty sequence" in str(error):
            raise UserError("no module is left to extract a LoRA of") from error
        raise UserError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def settle(config: Path, base_name: str) -> None:
    """Give adapter_config.json the base's name, and its lists an order.

    mergekit 0.1.5 writes `target_modules` in the order of a set.
    """
    content = json.loads(config.read_text(encoding="utf-8"))
    content["base_model_name_or_path"] = base_name
    content["target_modules"] = sorted(content["target_modules"])
    content["modules_to_save"] = sorted(content["modules_to_save"])
    config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--base-name", required=True, help="its name in the adapter's config")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument(
        "options", nargs="*", help="after --: options of mergekit-extract-lora, as --max-rank 32"
    )
    args = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != ENVIRONMENT["PYTHONHASHSEED"]:
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for directory in (args.model, args.base):
        if not (directory / "config.json").is_file():
            raise UserError(f"{directory}: no config.json in it, so it is not a model")
    extract(args.base, args.model, args.output, args.options)
    settle(args.output / "adapter_config.json", args.base_name)
    (args.output / "README.md").unlink()
    for file in args.output.iterdir():  # safetensors 0.8 writes files that only their owner reads
        file.chmod(0o644)


if __name__ == "__main__":
    program(main)

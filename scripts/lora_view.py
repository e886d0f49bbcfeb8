"""Make a view of a LoRA adapter: links to its files, and a config that tells the alpha of a GGUF.

llama.cpp (b10605, src/llama-adapter.h) scales an adapter by alpha / rank. peft scales one that has
`use_rslora` by alpha / sqrt(rank): its alpha becomes alpha * sqrt(rank) here. llama.cpp's converter
calls the adapter after its directory, so that is the view's name too.
"""

import argparse
import json
import math
from pathlib import Path

from lib.errors import UserError, program

CONFIG = "adapter_config.json"


def alpha_for_gguf(config: dict) -> float:
    """The alpha which, divided by the rank, is peft's scale. config: adapter_config.json."""
    alpha = config["lora_alpha"]
    return alpha * math.sqrt(config["r"]) if config.get("use_rslora") else alpha


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path, help="directory of the adapter, as peft saves it")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    args = parser.parse_args()
    try:
        config = json.loads((args.adapter / CONFIG).read_text(encoding="utf-8"))
        config["lora_alpha"] = alpha_for_gguf(config)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{args.adapter / CONFIG}: no config of a LoRA adapter: {error}") from None
    args.output.mkdir(parents=True)
    for file in args.adapter.iterdir():
        if file.name != CONFIG:
            (args.output / file.name).symlink_to(file.resolve())
    (args.output / CONFIG).write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    program(main)

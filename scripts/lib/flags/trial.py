"""What programs that try a companion of a GGUF share (scripts/check_mmproj.py, check_mtp.py)."""

import argparse
import json
from pathlib import Path


def trial_parser(doc: str, name: str, what: str, model: str, keys: str) -> argparse.ArgumentParser:
    """Their options. doc: what the program does. name, what: the argument that is the companion.

    model: of what the GGUF is that it is tried with. keys: of the JSON that is written.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument(name, type=Path, help=f"the {what}, GGUF")
    parser.add_argument("--model", type=Path, required=True, help=f"GGUF of the {model}")
    parser.add_argument(
        "--llama-cpp",
        type=json.loads,
        required=True,
        help="JSON {path: directory of the user's own build or null, cuda: on, off or auto, "
        "portable: true or false}",
    )
    parser.add_argument("--threads", type=int, default=1, help="also files to compile at once")
    parser.add_argument("--json", type=Path, help=f"file to write: {{{keys}}}")
    return parser

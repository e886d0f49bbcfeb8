"""The command line of the programs that measure the speed of one form (lib/stages/family.py)."""

import argparse
from pathlib import Path


def speed_parser(doc: str) -> argparse.ArgumentParser:
    """Their options. doc: what the program does."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("form", type=Path, help="the file or directory that people load")
    numbers = {
        "prompt-tokens": "tokens of the prompt",
        "text-tokens": "tokens of the text, one after the other and without a prompt",
        "repetitions": "how often each is measured, after a run that is not counted",
        "threads": "threads on the CPU",
        "gpus": "GPUs that can be seen; 0: the CPU does all",
    }
    for name, text in numbers.items():
        parser.add_argument(f"--{name}", type=int, required=True, help=text)
    return parser

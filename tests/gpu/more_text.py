"""Add the source of installed Python packages to the training text of demo_text.py.

The standard library has 5.4 million characters of it, which a model of a quarter of a billion
weights soon knows by heart. Other packages have many times as much: their code and their docstrings
are told apart as demo_text.py does it, and no paragraph of a held-out text is among them. Writes
train-code.txt and train-prose.txt, the old text first, and copies the other files.
"""

import argparse
import os
import random
import shutil
import sys
import sysconfig
import tokenize
from multiprocessing import Pool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import demo_text
from lib.errors import program

KINDS = ("train-code", "train-prose")


def divided(path: Path) -> tuple[list[str], list[str]]:
    """The paragraphs of a module's code, and of its prose; none if this Python cannot read it."""
    try:
        with tokenize.open(path) as file:
            code, prose = demo_text.split_source(file.read())
    except (SyntaxError, ValueError, tokenize.TokenError, OSError, RecursionError):
        return [], []
    found = demo_text.paragraphs("\n\n".join(prose))
    return demo_text.paragraphs(code), [text for text in found if demo_text.is_prose(text)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="what demo_text.py has written")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--packages",
        type=Path,
        default=Path(sysconfig.get_path("purelib")),
        help="directory with packages; default: this Python's own",
    )
    parser.add_argument("--characters", type=int, default=40_000_000, help="how many to add, about")
    args = parser.parse_args()

    seen = set()
    for path in args.text.glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        seen.update(" ".join(part.split()) for part in demo_text.paragraphs(text))
    sources = sorted(args.packages.rglob("*.py"))
    random.Random(0).shuffle(sources)
    added: dict[str, list[str]] = {kind: [] for kind in KINDS}
    missing = args.characters
    with Pool(os.cpu_count()) as pool:
        for parts in pool.imap(divided, sources, chunksize=16):
            for kind, paragraphs in zip(KINDS, parts, strict=True):
                for text in paragraphs:
                    key = " ".join(text.split())
                    if key not in seen:
                        seen.add(key)
                        added[kind].append(text)
                        missing -= len(text)
            if missing < 0:
                break
    shutil.copytree(args.text, args.output, dirs_exist_ok=True)
    for kind, paragraphs in added.items():
        with (args.output / f"{kind}.txt").open("a", encoding="utf-8", newline="\n") as file:
            file.write("\n\n" + "\n\n".join(paragraphs) + "\n")
            print(f"{kind}.txt: {file.tell():,} bytes")


if __name__ == "__main__":
    program(main)

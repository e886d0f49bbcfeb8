"""The command line of the programs that check a model directory and let it write."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path


def check_directory(
    description: str | None, check: Callable[[Path, str, int], str], tokens: int
) -> None:
    """Run a check, print the text that the model wrote, and write it where --json says.

    check(directory, prompt, tokens): the text that follows the prompt; it raises UserError if
    something is wrong. tokens: how many, if the command line does not say.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path, help="the directory")
    parser.add_argument("--prompt", default="def main():", help="text to go on from")
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens to write")
    parser.add_argument("--json", type=Path, help="file to write: {prompt, text}")
    args = parser.parse_args()
    text = check(args.model, args.prompt, args.tokens)
    print(f"{args.model}: {args.prompt!r} goes on as {text!r}")
    if args.json:
        found = json.dumps({"prompt": args.prompt, "text": text}, indent=2, ensure_ascii=False)
        args.json.write_text(found + "\n", encoding="utf-8")

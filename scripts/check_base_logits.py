"""Check that a file of base logits is complete: as long as its header says.

llama-perplexity b10605 ignores write errors, so a full disk leaves a short file and exit status 0.
A text shorter than two contexts does the same. Neither would show before a form is evaluated.
Exit status 1 if the file is not complete.
"""

import argparse
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.base_logits import HEADER, MAGIC, base_logits_bytes


def fault(path: Path, context: int) -> str | None:
    """What is wrong with the base logits in `path`, in one line; None if nothing is.

    context: the tokens of a chunk that were asked for.
    """
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        return f"{path}: nothing was scored; is the text shorter than {2 * context} tokens?"
    if not head.startswith(MAGIC):
        return f"{path}: not a file of base logits"
    _, length, vocabulary, chunks = HEADER.unpack(head)
    if length != context:
        return f"{path}: made with a context of {length} tokens, {context} were asked for"
    if chunks < 1:
        return f"{path}: no chunk of text in it"
    wanted = base_logits_bytes(chunks, length, vocabulary)
    size = path.stat().st_size
    if size != wanted:
        return f"{path}: {size} bytes, {wanted} for {chunks} chunks; is the disk full?"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "logits",
        type=Path,
        help="base logits, as llama-perplexity --kl-divergence-base writes them",
    )
    parser.add_argument("--context", type=int, required=True, help="tokens in a chunk")
    args = parser.parse_args()
    if message := fault(args.logits, args.context):
        raise UserError(message)


if __name__ == "__main__":
    program(main)

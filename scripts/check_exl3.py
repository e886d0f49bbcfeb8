"""Check that an EXL3 directory is whole and has no NaN, load it in exllamav3, write greedy tokens.

To be run in resources/environments/exllamav3.
"""

from pathlib import Path

from lib.errors import UserError, program
from lib.formats.check_directory import check_directory
from lib.formats.exllamav3 import Streamed, check_quantized
from lib.formats.safetensors_values import check_finite


def check(directory: Path, prompt: str, count: int) -> str:
    """The text of `count` greedy tokens after `prompt`. Raises UserError if something is wrong."""
    check_quantized(directory)
    check_finite(directory)
    model = Streamed(directory)
    import torch
    from exllamav3 import Tokenizer

    tokenizer = Tokenizer.from_config(model.config)
    tokens = tokenizer.encode(prompt, add_bos=True)
    start = tokens.shape[1]
    for _ in range(count):
        (last,) = model.logits(model.states([tokens], slice(-1, None)))
        if not last.isfinite().all():
            raise UserError(f"{directory}: its output is not finite")
        tokens = torch.cat([tokens, last.argmax(dim=-1, keepdim=True).cpu()], dim=-1)
    if not (text := tokenizer.decode(tokens[0, start:])):
        raise UserError(f"{directory}: it wrote no text in {count} tokens after {prompt!r}")
    return text


def main() -> None:
    check_directory(__doc__, check, tokens=8)


if __name__ == "__main__":
    program(main)

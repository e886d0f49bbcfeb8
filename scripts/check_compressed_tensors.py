"""Check a directory in compressed-tensors: no NaN or Inf, it loads, and it writes words.

transformers loads it and generates greedy tokens. To be run in
resources/environments/llmcompressor.
"""

from pathlib import Path

from lib.errors import UserError, program
from lib.formats.check_directory import check_directory
from lib.formats.in_transformers import load
from lib.formats.safetensors_values import check_finite


def written(directory: Path, prompt: str, count: int) -> str:
    """The text of `count` greedy tokens after `prompt`. Raises UserError if there is none."""
    import torch

    model = load(directory)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        if not model(tokens).logits.isfinite().all():
            raise UserError(f"{directory}: its output is not finite")
        made = model.generate(
            tokens, do_sample=False, min_new_tokens=count, max_new_tokens=count,
            attention_mask=torch.ones_like(tokens),
        )  # fmt: skip
    text = tokenizer.decode(made[0, tokens.shape[1] :])
    if not text.strip():
        raise UserError(f"{directory}: it wrote no text in {count} tokens after {prompt!r}")
    return text


def check(directory: Path, prompt: str, count: int) -> str:
    """The text of `count` greedy tokens after `prompt`. Raises UserError if something is wrong."""
    check_finite(directory)
    return written(directory, prompt, count)


def main() -> None:
    check_directory(__doc__, check, tokens=24)


if __name__ == "__main__":
    program(main)

"""Quantize a model directory by a scheme of compressed-tensors that is calibrated with a text.

llmcompressor does it, layer by layer. On processors the same model and text give the same bytes
every time. The result is a complete directory, as compressed_tensors_quantize.py makes one. To be
run in resources/environments/llmcompressor.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lib.errors import UserError, program
from lib.formats.compressed_tensors import METHODS, SCHEMES, fault, kept, shapes_in
from model_view import make_view

# GPTQ's bytes depend on the number of torch's threads (seen in llmcompressor 0.14.0.1 with 1, 2 and
# 4 of them), so it is part of this program.
THREADS = 4


def rows_of(tokenizer: Any, text: str, count: int, length: int) -> list[list[int]]:
    """At most `count` rows of `length` tokens, one after the other from the beginning of a text.

    Each begins with BOS if this tokenizer's texts do. Raises UserError if there is not even one.
    """
    first = [token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id]
    tokens, width = tokenizer(text, add_special_tokens=False).input_ids, length - len(first)
    rows = [first + tokens[at : at + width] for at in range(0, len(tokens) - width + 1, width)]
    if not rows:
        raise UserError(f"the text has {len(tokens)} tokens, too few for one row of {length}")
    print(f"{min(count, len(rows))} rows of {length} tokens", flush=True)
    return rows[:count]


def calibrate(model: Path, args: argparse.Namespace, keep: list[str]) -> None:
    """Make the directory args.output. model: a view of the model. keep: what is not quantized."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.awq import AWQModifier
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    torch.set_num_threads(THREADS)
    set_seed(0)
    text = args.text.read_text(encoding="utf-8")
    rows = rows_of(AutoTokenizer.from_pretrained(model), text, args.rows, args.length)
    methods = {"gptq": GPTQModifier, "awq": AWQModifier}
    modifier = methods.get(args.method, QuantizationModifier)
    if not torch.cuda.is_available():
        # AWQ pins memory for a GPU also where there is none, and ends with "Cannot access
        # accelerator device when none is available" (0.14.0.1). Nothing depends on it. No longer
        # needed when the test of W4A16-AWQ passes without it.
        IntermediatesCache.pin_memory = lambda *_, **__: None
    whole = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    columns = {"input_ids": rows, "attention_mask": [[1] * args.length] * len(rows)}
    oneshot(
        model=whole,
        dataset=Dataset.from_dict(columns),
        recipe=[modifier(targets="Linear", scheme=args.scheme, ignore=keep)],
        max_seq_length=args.length,
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    whole.save_pretrained(args.output, save_compressed=True, max_shard_size="5GB")
    for file in model.iterdir():
        if file.name != "config.json" and ".safetensors" not in file.name:
            shutil.copyfile(file, args.output / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="model directory, 16 or 32 bits a weight")
    parser.add_argument("--scheme", required=True, choices=SCHEMES)
    parser.add_argument(
        "--method", choices=METHODS, nargs="?", help="default: round to the nearest"
    )
    parser.add_argument("--text", type=Path, required=True, help="calibration text, UTF-8")
    parser.add_argument("--rows", type=int, required=True, help="rows of the text, at most")
    parser.add_argument("--length", type=int, required=True, help="tokens in a row")
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        view = Path(scratch, "model")
        shapes = shapes_in(make_view(args.model, view))
        if wrong := fault(args.scheme, shapes, calibrated=True):
            raise UserError(f"{args.model}: {wrong}")
        calibrate(view, args, kept(shapes))


if __name__ == "__main__":
    program(main)

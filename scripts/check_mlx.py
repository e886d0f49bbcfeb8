"""Load a quantized model directory in mlx-lm, search it for NaN and Inf, and write greedy tokens.

To be run in resources/environments/mlx.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.errors import UserError, program
from lib.formats.check_directory import check_directory
from lib.formats.model_files import model_files
from lib.formats.safetensors import read_header


def tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, values) of all tensors of floats, those of quantized layers dequantized."""
    import mlx.core as mx

    for name, module in model.named_modules():
        if "scales" in module:
            packed = (module.get(key) for key in ("scales", "biases"))
            how = module.group_size, module.bits, module.mode
            yield f"{name}.weight", mx.dequantize(module["weight"], *packed, *how)
        for key, value in module.items():
            if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
                yield f"{name}.{key}", value


def check(directory: Path, prompt: str, count: int) -> str:
    """The text of `count` greedy tokens after `prompt`. Raises UserError if something is wrong."""
    for file in model_files(directory):
        if file.suffix == ".safetensors":
            read_header(file)  # a file that is cut off is told in one line
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load

    model, tokenizer, config = load(str(directory), return_config=True)
    group = config["quantization"]["group_size"]
    for name, module in model.named_modules():
        if hasattr(module, "to_quantized") and module.weight.shape[-1] % group:
            raise UserError(f"{directory}: {name} is not quantized: no multiple of {group} columns")
    for name, values in tensors(model):
        if not mx.isfinite(values).all():
            raise UserError(f"{directory}: NaN or Inf in its tensor {name}")
    model.set_dtype(mx.float32)  # in 16 bits mlx 0.32.4 takes ten times as long on a CPU
    written = []
    tokens = mx.array(tokenizer.encode(prompt))
    for token, logits in generate_step(tokens, model, max_tokens=count):
        if not mx.isfinite(logits).all():
            raise UserError(f"{directory}: its output is not finite")
        written.append(int(token))
    if not (text := tokenizer.decode(written)):
        raise UserError(f"{directory}: it wrote no text in {count} tokens after {prompt!r}")
    return text


def main() -> None:
    check_directory(__doc__, check, tokens=16)


if __name__ == "__main__":
    program(main)

"""LoRA adapters as peft saves them, judged by what llama.cpp can do with them (b10605).

An adapter is a directory with adapter_config.json and adapter_model.safetensors. Standard library
only.
"""

import re
from pathlib import Path

from lib.errors import UserError
from lib.formats.safetensors import read_header
from lib.formats.soundness import check_file, document
from lib.formats.weights import is_tower

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# Keys of the config that must be empty or false: convert_lora_to_gguf.py ends with an error, or
# writes an adapter that does something else without a word.
UNABLE = {
    "use_dora": "it is a DoRA, whose magnitudes llama.cpp cannot apply",
    "alpha_pattern": "its modules have alphas of their own (alpha_pattern), and a GGUF has one",
    "modules_to_save": "it holds whole modules (modules_to_save)",
    "lora_bias": "it holds biases (lora_bias)",
}
INSTEAD = "; a merge of `model+adapter` can take it"


def fault(directory: Path) -> str | None:
    """Why llama.cpp cannot apply an adapter, in words; None if it can. Raises OSError."""
    try:
        config = document(directory / CONFIG)
        kind = config.get("peft_type")
    except FileNotFoundError:
        return f"has no {CONFIG}, so it is no LoRA adapter"
    except (UserError, AttributeError):
        return f"has no adapter in its {CONFIG}: it is not JSON"
    if kind != "LORA":
        return f"is an adapter of type {kind}, not LORA"
    for key, why in UNABLE.items():
        if config.get(key):
            return f"cannot be applied by llama.cpp: {why}{INSTEAD}"
    if config.get("use_rslora") and config.get("rank_pattern"):
        why = "its modules are scaled by the roots of their own ranks (use_rslora, rank_pattern)"
        return f"cannot be applied by llama.cpp: {why}, and a GGUF has one alpha{INSTEAD}"
    if config.get("bias", "none") != "none":
        return f"cannot be applied by llama.cpp: it holds biases (bias){INSTEAD}"
    if not isinstance(config.get("lora_alpha"), int | float):
        return f"has no lora_alpha in its {CONFIG}"
    if config.get("use_rslora") and not isinstance(config.get("r"), int):
        return f"has no rank (r) in its {CONFIG}"
    if not (directory / WEIGHTS).is_file():
        return f"has no {WEIGHTS}; pickles (.bin) are not taken, because they can run code"
    try:
        check_file(directory / WEIGHTS)
        names = read_header(directory / WEIGHTS).tensors
    except UserError as error:
        return f"has damaged weights: {error}"
    if not any(name.endswith(A) for name in names):
        return f"has no LoRA in its {WEIGHTS}"
    for name in names:
        if is_tower(name.removeprefix(PREFIX)):
            why = f"{name} is of a vision or audio tower, and only the text model takes adapters"
            return f"cannot be applied by llama.cpp: {why}{INSTEAD}"
    return None


def misfit(directory: Path, model: dict[str, tuple[int, ...]]) -> str | None:
    """Why an adapter without fault belongs to another model, in words; None if it fits.

    model: {name: shape} of the model's tensors, as in its safetensors.
    """
    tensors, known = read_header(directory / WEIGHTS).tensors, False
    shapes = {_plain(name): shape for name, shape in model.items()}
    for name, a in tensors.items():
        b = tensors.get(name.replace(A, B))
        shape = shapes.get(_plain(name.removeprefix(PREFIX).replace(A, ".weight")))
        if not name.endswith(A) or b is None or shape is None:
            continue
        if len(a.shape) != 2 or len(b.shape) != 2:
            return f"has no matrices in {name}"
        change, known = (b.shape[0], a.shape[-1]), True
        if sorted(change) != sorted(shape):  # of GPT-2 they are transposed
            return f"is for another model: {name} changes {change}, and the tensor is {shape}"
    return None if known else "is for another model: this one has none of the tensors it changes"


def _plain(name: str) -> str:
    """A tensor's name without the prefixes that differ between versions of transformers."""
    return re.sub(r"\b(language_model|text_model|model)\.", "", name)

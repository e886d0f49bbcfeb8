"""Loads model directories with transformers, those in compressed-tensors too."""

import os
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.formats.model_files import model_files

# To be set before transformers is imported: what is loaded is on this machine.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def load(directory: Path) -> Any:
    """The model, its weights as the numbers for which they stand, in the dtype of config.json.

    Where a scheme rounds activations, so does this. Raises UserError if transformers cannot load
    it, or misses a file or a tensor.
    """
    model_files(directory)
    os.environ.update(OFFLINE)
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

    more = {}
    try:
        if hasattr(AutoConfig.from_pretrained(directory), "quantization_config"):
            more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        model, found = AutoModelForCausalLM.from_pretrained(
            directory, dtype="auto", output_loading_info=True, **more
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{directory}: transformers cannot load it: {text}") from error
    if lacking := sorted([*found["missing_keys"], *found["mismatched_keys"]], key=str):
        raise UserError(
            f"{directory}: {len(lacking)} tensors are not as the model wants them: {lacking[0]} …"
        )
    return model.eval()

"""Runs models in exllamav3, a layer at a time, and checks what its converter writes.

Written against exllamav3 1.6.5.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lib.errors import UserError
from lib.formats.exllamav2 import layer_count
from lib.formats.json_file import read_json
from lib.formats.model_files import model_files
from lib.formats.safetensors import read_header


def check_quantized(directory: Path) -> None:
    """Check that `directory` is a complete EXL3 quant. Raises UserError if the check fails."""
    config = read_json(directory / "config.json")
    said = config.get("quantization_config", {})
    if said.get("quant_method") != "exl3":
        raise UserError(f"{directory}: config.json does not say that it is EXL3")
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory}: tokenizer.json is missing")
    tensors = {
        key
        for file in model_files(directory)  # none of its shards is missing
        if file.suffix == ".safetensors"
        for key in read_header(file).tensors  # none is cut off
    }
    for layer in range(layer_count(config)):
        if not any(f"layers.{layer}." in key and key.endswith(".trellis") for key in tensors):
            raise UserError(f"{directory}: no quantized tensor of layer {layer}")
    if said["head_bits"] < 16 and not any(key.endswith("lm_head.trellis") for key in tensors):
        raise UserError(f"{directory}: no quantized output tensor (lm_head)")


class Streamed:
    """A model, quantized or not, whose modules are loaded into the GPU one at a time.

    So the GPU needs memory for one layer or for the output tensor, whatever the size of the model.
    """

    def __init__(self, directory: Path):
        from exllamav3 import Config, Model

        try:
            self.config = Config.from_directory(str(directory))
            self.model = Model.from_config(self.config)
        except (AssertionError, ValueError) as error:
            raise UserError(f"{directory}: exllamav3 cannot load it: {error}") from None

    def states(self, rows: Iterable[Any], wanted: slice) -> list[Any]:
        """What enters the output layer at the `wanted` positions of each row, on the CPU.

        rows: token ids, int64 tensors (1, context).
        """
        import torch

        # Some architectures hand things from module to module in the parameters.
        found = [(row, {"attn_mode": "flash_attn_nc", "input_ids": row}) for row in rows]
        found = [(self.model.prepare_inputs(row, params), params) for row, params in found]
        *modules, _ = self.model.modules
        with torch.inference_mode():
            for module in modules:
                self.load(module)
                found = [
                    (self._run(module, state, params).cpu(), params) for state, params in found
                ]
                self.unload(module)
        return [state[:, wanted].clone() for state, _ in found]

    def logits(self, states: Iterable[Any]) -> Iterator[Any]:
        """Yield the logits of hidden states (1, n, hidden size): float32 (n, vocabulary)."""
        import torch

        head = self.model.modules[-1]
        self.load(head)
        with torch.inference_mode():
            for state in states:
                found = self._run(head, state, {"attn_mode": "flash_attn_nc"})
                yield found[0, :, : self.config.vocab_size].float()
        self.unload(head)

    def load(self, module: Any) -> None:
        """Load a module's tensors, as exllamav3's own programs do that take one after the other."""
        import torch

        reader = self.config.stc
        if deferred := module.can_defer_load():
            reader.begin_deferred_load()
        module.load(torch.device("cpu" if module.caps.get("prefer_cpu") else "cuda:0"))
        if deferred:
            reader.end_deferred_load()
        reader.close()

    def unload(self, module: Any) -> None:
        """Free a module's memory."""
        import torch

        module.unload()
        torch.cuda.empty_cache()

    def _run(self, module: Any, state: Any, params: dict[str, Any]) -> Any:
        return module.forward(module.prepare_for_device(state, params), params)

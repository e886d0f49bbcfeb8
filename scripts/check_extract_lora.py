"""Check a LoRA adapter that was extracted: peft loads it, and with it the base is near the model.

Near is measured in weights: the share of the difference between model and base that the adapter
lacks, as a norm over all tensors (0: the base with the adapter is the model; 1: it is no nearer
than the base). A tensor at a time is in memory, whatever the models' size.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.errors import UserError, program
from lib.formats.lora_adapter import WEIGHTS
from lib.formats.model_files import model_files

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, Any]  # {name: a function that reads the tensor}


def loaded(base: Path, adapter: Path) -> Any:
    """The adapter in peft, around a base model without weights.

    A module that the adapter says nothing of stays without weights, on torch's device `meta`.
    Raises UserError if peft cannot load it, or ignores a tensor of it.
    """
    import peft
    import torch
    import transformers
    from peft.utils import load_peft_weights

    config = transformers.AutoConfig.from_pretrained(base)
    name = next(iter(config.architectures or []), None)
    kind = getattr(transformers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UserError(f"{base}: transformers has no model that is called {name} (config.json)")
    with torch.device("meta"):
        empty = kind(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(empty, adapter, low_cpu_mem_usage=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{adapter}: peft cannot load it: {' '.join(str(error).split())}") from None
    # peft (0.21.2) moves LoRA weights to where the base model's are, and these are nowhere.
    weights = load_peft_weights(adapter, device="cpu")
    used = set()
    for name, module in model.named_modules():
        for key, _ in list(module.named_parameters(recurse=False)):
            plain = f"{name}.{key}"
            for word in (".default", ".modules_to_save"):
                plain = plain.replace(word, "")
            if plain in weights and ("lora_" in plain or "modules_to_save" in name):
                value = torch.nn.Parameter(weights[plain], requires_grad=False)
                if isinstance(module, torch.nn.ParameterDict):
                    module[key] = value
                else:
                    setattr(module, key, value)
                used.add(plain)
    if ignored := sorted(weights.keys() - used):
        raise UserError(f"{adapter}: peft ignores its tensor {ignored[0]}")
    return model


def changes(model: Any) -> Iterator[tuple[str, bool, "torch.Tensor"]]:
    """Yield (tensor's name, whether it takes the tensor's place, values) of all that it changes.

    Where a module of a layer is extracted, peft makes pairs in the modules of this name of all
    layers. Those without weights change nothing.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            change = module.get_delta_weight("default")
            if not change.is_meta:
                yield f"{name}.weight", False, change
            if module.lora_bias.get("default"):
                yield f"{name}.bias", False, module.lora_B["default"].bias
        elif isinstance(module, ModulesToSaveWrapper):
            for key, value in module.modules_to_save["default"].named_parameters():
                yield f"{name}.{key}", True, value


def tensors_of(directory: Path) -> "Tensors":
    """{name: a function that reads the tensor} of a model directory."""
    from safetensors import safe_open

    found = {}
    for file in (path for path in model_files(directory, True) if path.suffix == ".safetensors"):
        opened = safe_open(file, framework="pt")
        found |= {name: lambda n=name, f=opened: f.get_tensor(n) for name in opened.keys()}  # noqa: SIM118
    return found


def nearness(adapter: Path, base: Path, model: Path) -> dict[str, Any]:
    """{left: the share of the difference that the adapter lacks, worst: [tensor, its share]}.

    Raises UserError if model and base are of different shapes or do not differ at all.
    """
    ours, theirs = tensors_of(model), tensors_of(base)
    changed = {name: (whole, value) for name, whole, value in changes(loaded(base, adapter))}
    total = rest = 0.0
    worst = ("", 0.0)
    for name, read in ours.items():
        if name not in theirs:
            raise UserError(f"the base model has no tensor {name}")
        old, new = theirs[name]().float(), read().float()
        if old.shape != new.shape:
            shapes = f"{tuple(new.shape)} in the model, {tuple(old.shape)} in its base"
            raise UserError(f"the tensor {name} is {shapes}: they are no model and its base")
        difference = new - old
        whole, value = changed.get(name, (False, None))
        reached = 0 if value is None else value.float() - old if whole else value.float()
        size = float(difference.square().sum())
        left = float((difference - reached).square().sum())
        total, rest = total + size, rest + left
        if size and (left / size) ** 0.5 > worst[1]:
            worst = (name, (left / size) ** 0.5)
    if not total:
        raise UserError("the model does not differ from its base: there is nothing to extract")
    return {"left": round((rest / total) ** 0.5, 6), "worst": [worst[0], round(worst[1], 6)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path, help="directory of the adapter, as peft saves it")
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--json", type=Path, help="file to write: {parameters, left, worst}")
    args = parser.parse_args()
    if not (args.adapter / WEIGHTS).is_file():
        raise UserError(f"{args.adapter}: no {WEIGHTS} in it")
    from count_parameters import parameters

    found = {"parameters": parameters(args.adapter)}
    found |= nearness(args.adapter, args.base, args.model)
    if not found["left"] < 1:  # NaN is not either
        raise UserError(f"{args.adapter}: with it the base is no nearer to the model: {found}")
    print(f"{args.adapter}: {found}")
    if args.json:
        args.json.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

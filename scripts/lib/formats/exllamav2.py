"""Prepares what exllamav2 reads (environment, model directory, flags), and checks what it writes.

Standard library only. Written against exllamav2 0.3.2.
"""

import json
import math
import re
from pathlib import Path

from lib.errors import UserError
from lib.formats.model_files import model_files
from lib.formats.safetensors import read_header

# Without flash-attn, exllamav2 0.3.2 uses SDPA and forgets the causal mask (attn.py, _attn_torch:
# `in block_diag_layers or causal` takes a block mask that is None). Each token then sees the tokens
# after it, in calibration too. This setting selects the other path, which is right.
# Not needed once exllamav2's perplexity without flash-attn equals that of transformers.
ENVIRONMENT = {"EXLLAMA_NO_SDPA": "1"}

WORKING_FILE = re.compile(r"output_temp_\d+\.safetensors")
SHARD = re.compile(r"output-(\d{5})-of-(\d{5})\.safetensors")


def exllama_config(config: dict) -> dict:
    """A copy of a config.json, as a dict, that exllamav2 0.3.2 reads correctly.

    transformers 5 writes `rope_parameters`, but exllamav2 looks for `rope_theta` and
    `rope_scaling`. If they are missing, it silently takes a theta of 10000, which makes another
    model. Not needed once exllamav2 reads `rope_parameters`.
    """
    result = dict(config)
    for part in (result, result.get("text_config")):
        if not isinstance(part, dict) or not isinstance(part.get("rope_parameters"), dict):
            continue
        rope = part["rope_parameters"]
        if isinstance(rope.get("full_attention"), dict):  # one set for each kind of layer
            rope = rope["full_attention"]
        rope = dict(rope)
        if (theta := rope.pop("rope_theta", None)) is not None:
            part.setdefault("rope_theta", theta)
        if (factor := rope.pop("partial_rotary_factor", None)) is not None:
            part.setdefault("partial_rotary_factor", factor)
        if rope.get("rope_type", "default") != "default":
            part.setdefault("rope_scaling", rope)
            if "original_max_position_embeddings" in rope:
                part.setdefault(
                    "original_max_position_embeddings", rope["original_max_position_embeddings"]
                )
    return result


def make_view(model: Path, view: Path) -> None:
    """Make the directory `view`: links to the files of `model`, and a config.json for exllamav2.

    Raises UserError if `model` has no tokenizer.json, the only tokenizer that exllamav2 reads, or
    is not a complete model.
    """
    files = model_files(model)
    if not (model / "tokenizer.json").is_file():
        raise UserError(
            f"{model}: no tokenizer.json in it, the only tokenizer that exllamav2 reads; "
            "transformers' AutoTokenizer makes one from the others (save_pretrained)"
        )
    view.mkdir(parents=True)
    for file in files:
        if file.name == "config.json":
            config = exllama_config(_read_config(model))
            (view / file.name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        elif not file.name.endswith(
            ".safetensors.index.json"
        ):  # names shards that EXL2 does not have
            (view / file.name).symlink_to(file.absolute())


def readable(model: Path, view: Path) -> Path:
    """A directory from which exllamav2 reads the model correctly: `model`, or `view` made from it.

    An EXL2 directory is used as it is if its config.json has the keys that exllamav2 reads. One
    that another program has converted may have only `rope_parameters`; it gets a view with a
    corrected config.json. Every model that is not EXL2 gets a view by `make_view`.

    Raises UserError as `make_view` does, and for a config.json that cannot be read.
    """
    config = _read_config(model)
    if config.get("quantization_config", {}).get("quant_method") != "exl2":
        make_view(model, view)
        return view
    read = exllama_config(config)
    if read == config:
        return model
    view.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "config.json":
            (view / file.name).symlink_to(file.absolute())
    (view / "config.json").write_text(json.dumps(read, indent=2) + "\n", encoding="utf-8")
    return view


def layer_count(config: dict) -> int:
    """The number of transformer layers in a config.json. Raises UserError if it names none."""
    for part in (config, config.get("text_config", {})):
        for key in ("num_hidden_layers", "n_layers", "n_layer"):
            if isinstance(part.get(key), int):
                return part[key]
    raise UserError("config.json does not say how many layers the model has (num_hidden_layers)")


def check_measurement(file: Path, layers: int, whole: bool = True) -> None:
    """Check that `file`, exllamav2's measurement.json, has measurements of each of `layers` layers.

    whole: False if the number of layers is not known. Then only the format is checked.
    Raises UserError if the check fails.
    """
    try:
        measurement = json.loads(file.read_text(encoding="utf-8"))["measurement"]
        accuracies = {
            key: [option["accuracy"] for option in _options(tried)]
            for key, tried in measurement.items()
            if tried
        }
    except FileNotFoundError:
        raise UserError(f"{file}: the converter did not write it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a measurement ({error!r})") from None
    if not whole:
        return
    for layer in range(layers):
        found = [values for key, values in accuracies.items() if f"layers.{layer}." in key]
        if not found:
            raise UserError(f"{file}: layer {layer} of {layers} was not measured")
        if not all(math.isfinite(value) for values in found for value in values):
            raise UserError(f"{file}: the accuracy of layer {layer} is not a number")
    if any(f"layers.{layers}." in key for key in accuracies):
        raise UserError(f"{file}: it has more layers than the model's {layers}: another model's")


def _options(tried: list | dict) -> list[dict]:
    """The options measured for a module: one list, or for a parallel decoder one for each part."""
    if isinstance(tried, dict):
        return [option for part in tried.values() for option in part]
    return tried


def check_quantized(directory: Path, view: Path, bits: float) -> None:
    """Check that `directory` is a complete EXL2 quant, of `bits` bits per weight, of a model.

    view: the directory that was converted, as `make_view` made it.
    Raises UserError if the check fails.
    """
    names = {file.name for file in directory.iterdir()} if directory.is_dir() else set()
    if not names:
        raise UserError(f"{directory}: the converter wrote nothing there")
    weights = {name for name in names if name.endswith(".safetensors")}
    if left := sorted(name for name in weights if WORKING_FILE.fullmatch(name)):
        raise UserError(f"{directory}: {left[0]} is a working file: the conversion did not finish")
    _check_shards(directory, weights)

    tensors = {key for name in weights for key in read_header(directory / name).tensors}
    for layer in range(layer_count(_read_config(view))):
        if not any(f"layers.{layer}." in key and key.endswith(".q_weight") for key in tensors):
            raise UserError(f"{directory}: no quantized tensor of layer {layer}")
    if not any(key.endswith("lm_head.q_weight") for key in tensors):
        raise UserError(f"{directory}: no quantized output tensor (lm_head)")

    quantization = _read_config(directory).get("quantization_config", {})
    if quantization.get("quant_method") != "exl2" or quantization.get("bits") != bits:
        raise UserError(f"{directory}: config.json does not say that it has {bits} bits EXL2")
    wanted = {file.name for file in view.iterdir() if not file.name.endswith(".safetensors")}
    for name in sorted(wanted):
        if name not in names:
            raise UserError(f"{directory}: {name} is missing")
        if (
            name != "config.json"
            and (directory / name).stat().st_size != (view / name).stat().st_size
        ):
            raise UserError(f"{directory}: {name} is not the model's")
    if extra := sorted(names - wanted - weights):
        raise UserError(f"{directory}: {extra[0]} is no file of the model")


def _check_shards(directory: Path, weights: set[str]) -> None:
    if weights == {"output.safetensors"}:
        return
    numbers = [SHARD.fullmatch(name) for name in sorted(weights)]
    if not numbers or None in numbers:
        raise UserError(
            f"{directory}: {sorted(weights) or 'no weights'} in place of output*.safetensors"
        )
    if [int(m[1]) for m in numbers] != list(range(1, int(numbers[0][2]) + 1)):
        raise UserError(
            f"{directory}: a shard is missing, of {numbers[0][2]} there are {len(numbers)}"
        )


def _read_config(directory: Path) -> dict:
    try:
        return json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}/config.json: {error}") from None


def exl2_flags(options: dict) -> list[str]:
    """The flags of scripts/exl2_convert.py for an artifact's options, which have the same names.

    An option of None gives no flag.
    """
    given = {key: str(value) for key, value in options.items() if value is not None}
    return [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]

"""Which files of a model directory a build step needs: weights, config and tokenizer.

Other files (a card, a stray download, an old checkpoint) are not part of the model. They are not
linked into a step's view of the model, and its identity ignores them. Standard library only.
"""

import json
from fnmatch import fnmatchcase
from pathlib import Path

from lib.errors import UserError

# Files besides the weights that mergekit, llama.cpp's converter and exllamav2 read.
SIDE_FILES = (
    "config*.json", "generation_config.json", "adapter_config.json", "hf_quant_config.json",
    "preprocessor_config.json", "processor_config.json", "tokenizer*.json", "tokenizer*.model*",
    "*.model", "*.tiktoken", "tekken.json", "special_tokens_map.json", "added_tokens.json",
    "vocab*.json", "vocab*.txt", "rwkv_vocab*.txt", "merges.txt", "chat_template*.json", "*.jinja",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Only pickles of these names are weights to mergekit and to the converter. Others are optimizer
# states and the like.
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model-*.bin", "adapter_model.bin")


def model_files(directory: Path, allow_pickle: bool = False) -> list[Path]:
    """The files of a model or LoRA adapter that a build step needs, sorted by name.

    Pickled weights are listed only if there are no safetensors and `allow_pickle` is true. If there
    is an index, it decides which shards belong to the model. Only the top level of `directory` is
    read.

    Raises UserError if there is no directory, no config.json, no weights or only pickles, if the
    index cannot be read, or if a shard is missing that it names.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such directory")
    present = {p.name: p for p in directory.iterdir() if p.name[0] != "." and p.is_file()}
    if "config.json" not in present and "adapter_config.json" not in present:
        raise UserError(
            f"{directory}: no config.json in it, so it is not a model in Hugging Face form"
        )
    weights = _weights(directory, set(present), allow_pickle)
    side = {n for n in present if any(fnmatchcase(n, pattern) for pattern in SIDE_FILES)}
    return [present[name] for name in sorted(weights | side)]


def _weights(directory: Path, names: set[str], allow_pickle: bool) -> set[str]:
    """The names of the weight files and of their index. Raises UserError if there are none."""
    found = _indexed(directory, names, "model.safetensors.index.json")
    if not found and "model.safetensors" in names:
        found = {"model.safetensors"}
    if not found:
        found = {n for n in names if n.endswith(".safetensors")}
    if "adapter_model.safetensors" in names:
        found = found | {"adapter_model.safetensors"}
    if found:
        return found

    pickles = {n for n in names if any(fnmatchcase(n, pattern) for pattern in PICKLES)}
    if not pickles:
        raise UserError(f"{directory}: no weights in it (no *.safetensors file)")
    if not allow_pickle:
        raise UserError(
            f"{directory}: its weights are only there as pickles ({min(pickles)}), which can run "
            "any code when they are loaded; say `allow_pickle: true` if you trust them"
        )
    found = _indexed(directory, names, "pytorch_model.bin.index.json")
    if not found:
        found = {n for n in pickles if any(fnmatchcase(n, p) for p in PICKLED_WEIGHTS)}
    if not found:
        raise UserError(
            f"{directory}: no weights that the tools can read (pytorch_model*.bin) among its "
            "pickles"
        )
    return found


def _indexed(directory: Path, names: set[str], index: str) -> set[str]:
    """The names of the shards in `index`, and of the index itself; empty if there is no index."""
    if index not in names:
        return set()
    try:
        shards = set(
            json.loads((directory / index).read_text(encoding="utf-8"))["weight_map"].values()
        )
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{directory / index}: not a safetensors index") from None
    for shard in sorted(shards):
        if shard not in names:
            raise UserError(f"{directory}: {shard}, which {index} names, is not there")
    return shards | {index}

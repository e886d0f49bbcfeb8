"""Describes a GGUF file that a user gives as a model's source, from its header."""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from lib.errors import UserError


class GgufSource(NamedTuple):
    """The model in a GGUF file, as its header describes it."""

    form: str
    """The name of its form: BF16, Q8_0, Q4_K_M."""
    quantized: bool
    """Whether any of its tensors is not stored as floats."""
    experts: int
    """The number of experts in a layer; 0 for a dense model."""


def describe(path: Path) -> GgufSource:
    """The model in a GGUF file. Only the header is read (0.2 s for a vocabulary of 128k tokens).

    Raises UserError if the file is no GGUF, is cut off, or holds no whole language model: a shard,
    a multimodal projector, a vocabulary alone.
    """
    # The config's schema imports this module. These imports take 0.08 s, and few configs need them.
    from gguf.constants import GGML_QUANT_SIZES

    from lib.formats.gguf_bounds import read_careful

    file = read_careful(path)
    metadata = file.metadata
    shards = metadata.get("split.count", 0)
    if shards > 1:
        raise UserError(
            f"{path}: this is shard {metadata.get('split.no', 0) + 1} of {shards}; a source is "
            "one file: join them with llama-gguf-split --merge FIRST-SHARD WHOLE.gguf"
        )
    architecture = str(metadata.get("general.architecture"))
    kind = "mmproj" if architecture == "clip" else metadata.get("general.type", "model")
    if kind == "mmproj":
        raise UserError(f"{path}: this is a multimodal projector (mmproj), not a language model")
    if kind != "model":
        raise UserError(f"{path}: general.type is {kind}: not a model")
    if not file.tensors:
        raise UserError(f"{path}: there are no tensors in it, only a vocabulary")
    quantized = any(GGML_QUANT_SIZES[tensor.type][0] > 1 for tensor in file.tensors)
    experts = int(metadata.get(f"{architecture}.expert_count", 0))
    return GgufSource(_form(file, quantized), quantized, experts)


def _form(file: Any, quantized: bool) -> str:
    """The mixture that a quantized file names in its header; else the type of most weights."""
    if quantized:
        from gguf.constants import LlamaFileType

        try:
            mixture = LlamaFileType(file.metadata["general.file_type"]).name
        except (KeyError, ValueError):
            mixture = "GUESSED"
        mixture = mixture.partition("_")[2]  # MOSTLY_Q4_K_M
        if mixture not in ("", "F16", "BF16", "F32"):
            return mixture
    weights: Counter[str] = Counter()
    for tensor in file.tensors:
        weights[tensor.type_name] += tensor.elements if len(tensor.shape) > 1 else 1
    return weights.most_common(1)[0][0]

"""The flags of llama-quantize."""

from typing import Any


def quantize_flags(options: dict[str, Any]) -> list[str]:
    """The flags for the options of a quant's recipe. Its `type` is not a flag and is left out."""
    flags = []
    for key in ("token_embedding_type", "output_tensor_type"):
        if options.get(key):
            flags += [f"--{key.replace('_', '-')}", options[key]]
    for key in ("leave_output_tensor", "pure", "allow_requantize"):
        if options.get(key):
            flags.append(f"--{key.replace('_', '-')}")
    for key, flag in (
        ("tensor_types", "--tensor-type"),
        ("exclude_weights", "--exclude-weights"),
        ("include_weights", "--include-weights"),
        ("override_kv", "--override-kv"),
    ):
        for value in options.get(key, ()):
            flags += [flag, value]
    if options.get("prune_layers"):
        flags += ["--prune-layers", ",".join(map(str, options["prune_layers"]))]
    return flags

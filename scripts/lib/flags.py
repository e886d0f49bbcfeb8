"""Config keys as the flags of llama.cpp's tools."""

from typing import Any


def context_flags(options: dict[str, Any]) -> list[str]:
    """--ctx-size and --chunks, which llama-imatrix and llama-perplexity share."""
    flags = ["--ctx-size", str(options["context"])]
    if options.get("chunks"):
        flags += ["--chunks", str(options["chunks"])]
    return flags


def imatrix_flags(options: dict[str, Any]) -> list[str]:
    """What changes llama-imatrix's bytes."""
    flags = context_flags(options)
    if options.get("batch_size"):
        flags += ["--batch-size", str(options["batch_size"])]
    for key in ("process_output", "parse_special"):
        if options.get(key):
            flags.append(f"--{key.replace('_', '-')}")
    return flags


def quantize_flags(options: dict[str, Any]) -> list[str]:
    """A quant's deviations from its type's mixture, for llama-quantize."""
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


def exl2_flags(options: dict[str, Any]) -> list[str]:
    """The options of a measurement or a conversion: scripts/exl2_convert.py calls them as the config does."""
    given = {key: str(value) for key, value in options.items() if value is not None}
    return [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]

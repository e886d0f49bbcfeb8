"""The flags of llama-imatrix."""

from typing import Any

from lib.flags.context import context_flags


def imatrix_flags(options: dict[str, Any]) -> list[str]:
    """The flags that decide the imatrix's bytes, from the options of its recipe."""
    flags = context_flags(options)
    if options.get("batch_size"):
        flags += ["--batch-size", str(options["batch_size"])]
    for key in ("process_output", "parse_special"):
        if options.get(key):
            flags.append(f"--{key.replace('_', '-')}")
    return flags

"""The flags that llama-imatrix and llama-perplexity share."""

from typing import Any


def context_flags(options: dict[str, Any]) -> list[str]:
    """--ctx-size and --chunks, from the options `context` (tokens in a chunk) and `chunks`."""
    flags = ["--ctx-size", str(options["context"])]
    if options.get("chunks"):
        flags += ["--chunks", str(options["chunks"])]
    return flags

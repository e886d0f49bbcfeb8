"""The flags of the programs that find mixes."""

from typing import Any

TARGETS = ("target_size", "target_bpw", "memory")


def target_flags(options: dict[str, Any]) -> list[str]:
    """The flags of mix.py: a mix's target, and what belongs to it."""
    keys = (*TARGETS, "context", "cache_type")
    given = ((key, options[key]) for key in keys if options.get(key) is not None)
    return [word for key, value in given for word in (f"--{key.replace('_', '-')}", str(value))]


def sensitivity_flags(options: dict[str, Any]) -> list[str]:
    """The flags of sensitivity.py that decide its result."""
    types = ",".join(options["types"])
    return ["--corpus", options["corpus"], "--chunks", str(options["chunks"]), "--types", types]


def max_kld_flags(options: dict[str, Any]) -> list[str]:
    """The flags of mix_by_kld.py that decide its result."""
    half = ["--half"] if options.get("half") else []
    flags = ["--max-kld", str(options["max_kld"]), "--corpus", options["corpus"]]
    return [*flags, "--chunks", str(options["chunks"]), *half]

"""The flags of the programs that find mixes."""

from typing import Any


def target_flags(options: dict[str, Any]) -> list[str]:
    """The flags of mix.py: a mix's target, and what belongs to it."""
    given = ((f"--{key.replace('_', '-')}", str(value)) for key, value in options.items())
    return [word for words in given for word in words]


def sensitivity_flags(options: dict[str, Any]) -> list[str]:
    """The flags of sensitivity.py that decide its result."""
    types = ",".join(options["types"])
    return ["--corpus", options["corpus"], "--chunks", str(options["chunks"]), "--types", types]


def max_kld_flags(options: dict[str, Any]) -> list[str]:
    """The flags of mix_by_kld.py that decide its result."""
    half = ["--half"] if options.get("half") else []
    flags = ["--max-kld", str(options["max_kld"]), "--corpus", options["corpus"]]
    return [*flags, "--chunks", str(options["chunks"]), *half]

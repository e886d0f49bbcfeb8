"""The flags of scripts/compressed_tensors_calibrate.py."""

from typing import Any


def calibrate_flags(options: dict[str, Any]) -> list[str]:
    """--scheme, --method, --rows and --length, from the options of these names that are set."""
    names = [name for name in ("scheme", "method", "rows", "length") if options.get(name)]
    return [word for name in names for word in (f"--{name}", str(options[name]))]

"""The flags of mlx_lm.convert."""

from typing import Any


def mlx_flags(options: dict[str, Any]) -> list[str]:
    """The flags for the options `mode`, `bits` and `group_size` of a form's recipe."""
    flags = ["--quantize", "--q-mode", options["mode"], "--q-bits", str(options["bits"])]
    return [*flags, "--q-group-size", str(options["group_size"])]

"""The flags of scripts/exl2_convert.py."""

from typing import Any


def exl2_flags(options: dict[str, Any]) -> list[str]:
    """The options of a measurement or a conversion: scripts/exl2_convert.py calls them as the config does."""
    given = {key: str(value) for key, value in options.items() if value is not None}
    return [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]

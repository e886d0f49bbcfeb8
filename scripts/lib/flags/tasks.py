"""The flags of the programs that measure tasks."""

from typing import Any


def task_flags(options: dict[str, Any]) -> list[str]:
    """--kind, --count and --context, from the options of these names that are set."""
    names = [name for name in ("kind", "count", "context") if options.get(name)]
    return [word for name in names for word in (f"--{name}", str(options[name]))]

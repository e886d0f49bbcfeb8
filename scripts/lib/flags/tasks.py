"""The flags of evaluate_task.py."""

from typing import Any


def task_flags(options: dict[str, Any]) -> list[str]:
    """--kind, --context and --count, from the options of these names; `count` may be left out."""
    flags = ["--kind", options["kind"], "--context", str(options["context"])]
    if options.get("count"):
        flags += ["--count", str(options["count"])]
    return flags

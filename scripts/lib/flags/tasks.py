"""The command lines of the programs that measure tasks."""

import argparse
from pathlib import Path
from typing import Any

from lib.formats.task_files import READERS


def task_flags(options: dict[str, Any]) -> list[str]:
    """--kind, --count and --context, from the options of these names that are set."""
    names = [name for name in ("kind", "count", "context") if options.get(name)]
    return [word for name in names for word in (f"--{name}", str(options[name]))]


def task_parser(doc: str, model: str, command: str) -> argparse.ArgumentParser:
    """Their options. doc: what the program does. model, command: what these are."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("tasks", type=Path, help="file of tasks (lib/formats/task_files.py)")
    parser.add_argument("--kind", required=True, choices=READERS, help="of the file")
    parser.add_argument("--count", type=int, help="tasks to measure (default: all)")
    parser.add_argument("--model", type=Path, required=True, help=model)
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("command", nargs="+", help=f"after --: {command}, with flags")
    return parser

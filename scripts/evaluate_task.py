"""Measure how many tasks of a file a GGUF file solves (HellaSwag, WinoGrande, multiple choice).

llama-perplexity finds which of a task's choices is the most probable: of multiple choice and
HellaSwag the one whose tokens have the highest mean log-probability, of WinoGrande the one after
which the rest of the sentence has.

The JSON is {score, error, tasks, left_out, chance, correct, kind, sha256, engine}:

    score, error  the share of tasks solved, and its standard error by their number
    tasks         how many were measured
    left_out      how many more cannot be (lib/formats/task_files.Task.is_comparable)
    chance        the score of one that guesses
    correct       a sign a task, in the order of the file: 1 solved, 0 not
    sha256        of the file of tasks
"""

import argparse
import hashlib
import json
import math
import re
import subprocess
import tempfile
from pathlib import Path

from lib.errors import UserError, program
from lib.formats.task_files import (
    READERS,
    Task,
    read,
    write_multiple_choice,
    write_winogrande,
)

# The tool (b10605) prints through a thread with a queue of 512 entries, and ends without waiting
# for it. After so many short tasks more, all lines that count are written. No longer needed when
# the tool's last line comes without them, every time, on a busy machine.
QUEUE = 512
SEQUENCES = 128  # as many choices as the tool computes side by side


def chosen(tasks: list[Task], count: int | None) -> list[Task]:
    """So many tasks, spread evenly over all of them; all if None."""
    if count is None or count >= len(tasks):
        return tasks
    return [tasks[index * len(tasks) // count] for index in range(count)]


def solved(tasks: list[Task], kind: str, command: list[str], context: int) -> list[bool]:
    """Whether each task is solved. Raises UserError if the tool stops before the last one.

    command: llama-perplexity with a model. context: tokens of a task with all its choices at most.
    """
    size = ["--parallel", str(SEQUENCES), "--ctx-size", str(-(-context // SEQUENCES))]
    with tempfile.NamedTemporaryFile() as file:
        if kind == "winogrande":
            file.write(write_winogrande([*tasks, *[Task("a ", ["b", "c"], 0, " a a")] * QUEUE]))
            mode, pattern = "--winogrande", r"\d+\t.* ([12])  ([12])$"
        else:
            # For HellaSwag too, which is computed alike: --hellaswag takes the tasks in an order
            # of its own.
            file.write(write_multiple_choice([*tasks, *[Task("a", ["b", "c"], 0)] * QUEUE]))
            mode, pattern = "--multiple-choice", r"(\d+)\t([\d.]+)$"
        file.flush()
        # Not --file, which takes away the last line's end, and with it the last task.
        typed = [*command, mode, "--binary-file", file.name, *size]
        done = subprocess.run(typed, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    lines = re.findall(pattern, done.stdout, re.MULTILINE)[: len(tasks)]
    if done.returncode or len(lines) < len(tasks):
        raise UserError(
            f"{command[0]} ended with status {done.returncode} after {len(lines)} of {len(tasks)} "
            "tasks; see above. One that does not fit in the context window needs a larger `context`"
        )
    if kind == "winogrande":
        return [answer == right for answer, right in lines]
    sums = [0, *(round(int(number) * float(percent) / 100) for number, percent in lines)]
    return [after > before for before, after in zip(sums, sums[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", type=Path, help="file of tasks (lib/formats/task_files.py)")
    parser.add_argument("--kind", required=True, choices=READERS, help="of the file")
    parser.add_argument("--count", type=int, help="tasks to measure (default: all)")
    parser.add_argument(
        "--context",
        type=int,
        default=2048,
        help="tokens of a task with all its choices, at most (default: 2048)",
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument(
        "command", nargs="+", help="after --: llama-perplexity, with the model and flags"
    )
    args = parser.parse_args()
    every = read(args.tasks, args.kind)
    usable = [task for task in every if task.is_comparable]
    tasks = chosen(usable, args.count)
    correct = solved(tasks, args.kind, args.command, args.context)
    score = sum(correct) / len(tasks)
    found = {
        "score": score,
        "error": math.sqrt(score * (1 - score) / max(1, len(tasks) - 1)),
        "tasks": len(tasks),
        "left_out": len(every) - len(usable),
        "chance": sum(1 / len(task.choices) for task in tasks) / len(tasks),
        "correct": "".join("01"[right] for right in correct),
        "kind": args.kind,
        "sha256": hashlib.sha256(args.tasks.read_bytes()).hexdigest(),
        "engine": "llama.cpp",
    }
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

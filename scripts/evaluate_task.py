"""Measure how many tasks of a file a GGUF file solves (HellaSwag, WinoGrande, multiple choice).

llama-perplexity finds which of a task's choices is the most probable: of multiple choice and
HellaSwag the one whose tokens have the highest mean log-probability, of WinoGrande the one after
which the rest of the sentence has.

The JSON is what lib/formats/task_files.measured says, and {engine: llama.cpp}.
"""

import argparse
import json
import re
import subprocess
import tempfile

from lib.errors import UserError, program
from lib.formats.task_files import (
    Task,
    measured,
    options,
    write_multiple_choice,
    write_winogrande,
)

# The tool (b10605) prints through a thread with a queue of 512 entries, and ends without waiting
# for it. After so many short tasks more, all lines that count are written. No longer needed when
# the tool's last line comes without them, every time, on a busy machine.
QUEUE = 512
SEQUENCES = 128  # as many choices as the tool computes side by side


def solved(tasks: list[Task], kind: str, command: list[str], context: int) -> list[bool]:
    """Whether each task is solved. Raises UserError if the tool stops before the last one.

    command: llama-perplexity with a model. context: tokens of a task with all its choices at most.
    """
    size = ["--parallel", str(SEQUENCES), "--ctx-size", str(-(-context // SEQUENCES))]
    with tempfile.NamedTemporaryFile() as file:
        if kind == "winogrande":
            file.write(write_winogrande([*tasks, *[Task("a ", ["b", "c"], 0, " a a")] * QUEUE]))
            mode, pattern = "--winogrande", r"^\d+\t.* ([12])  ([12])$"
        else:
            # For HellaSwag too, which is computed alike: --hellaswag takes the tasks in an order
            # of its own.
            file.write(write_multiple_choice([*tasks, *[Task("a", ["b", "c"], 0)] * QUEUE]))
            mode, pattern = "--multiple-choice", r"^(\d+)\t([\d.]+)$"
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
    parser = argparse.ArgumentParser(description=__doc__)
    options(parser)
    parser.add_argument(
        "--context",
        type=int,
        default=2048,
        help="tokens of a task with all its choices, at most (default: 2048)",
    )
    parser.add_argument(
        "command", nargs="+", help="after --: llama-perplexity, with the model and flags"
    )
    args = parser.parse_args()
    found = measured(args, lambda tasks: solved(tasks, args.kind, args.command, args.context))
    text = json.dumps(found | {"engine": "llama.cpp"}, indent=2)
    args.output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

"""Measure how many tasks of a file a GGUF file solves (HellaSwag, WinoGrande, multiple choice).

llama-perplexity finds which of a task's choices is the most probable: of multiple choice and
HellaSwag the one whose tokens have the highest mean log-probability, of WinoGrande the one after
which the rest of the sentence has.

The JSON is what lib/formats/task_files.measured says, and {engine: llama.cpp}.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

from lib.errors import UserError, program
from lib.flags.tasks import task_parser
from lib.formats.memory import shape_of
from lib.formats.task_files import Task, measured, write_multiple_choice, write_winogrande

# The tool (b10605) prints through a thread with a queue of 512 entries, and ends without waiting
# for it. After so many short tasks more, all lines that count are written. No longer needed when
# the tool's last line comes without them, every time, on a busy machine.
QUEUE = 512
# As many choices as the tool computes side by side, and the bytes of memory for their states.
SEQUENCES, STATES = 128, 2**30


def side_by_side(tasks: list[Task], model: Path) -> int:
    """How many choices the tool may compute together; it takes all choices of a task at once.

    Models with a state in place of a cache (Qwen 3.5, Mamba) have one for each choice: 150 MB each
    of Qwen 3.5 27B. A cache holds the same tokens however many choices they are of.
    """
    shape = shape_of(model)
    state = 4 * shape.state if shape else STATES
    fitting = min(SEQUENCES, STATES // max(1, state))
    return max(4, *(len(task.choices) for task in tasks), fitting)  # 4 is the tool's own least


def solved(
    tasks: list[Task], kind: str, command: list[str], model: Path, context: int
) -> list[bool]:
    """Whether each task is solved. Raises UserError if the tool stops before the last one.

    command: llama-perplexity, with flags. context: tokens of a task with all its choices, at most.
    """
    count = side_by_side(tasks, model)
    size = ["--parallel", str(count), "--ctx-size", str(-(-context // count))]
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
        typed = [*command, "--model", str(model), mode, "--binary-file", file.name, *size]
        print(f"measuring {len(tasks)} tasks", flush=True)
        said = []
        with subprocess.Popen(typed, stdout=subprocess.PIPE, text=True) as tool:
            for line in tool.stdout:
                print(line, end="", flush=True)  # for `snakemake live`
                said.append(line)
    lines = re.findall(pattern, "".join(said), re.MULTILINE)[: len(tasks)]
    if tool.returncode or len(lines) < len(tasks):
        raise UserError(
            f"{command[0]} ended with status {tool.returncode} after {len(lines)} of {len(tasks)} "
            "tasks; see above. One that does not fit in the context window needs a larger `context`"
        )
    if kind == "winogrande":
        return [answer == right for answer, right in lines]
    sums = [0, *(round(int(number) * float(percent) / 100) for number, percent in lines)]
    return [after > before for before, after in zip(sums, sums[1:], strict=False)]


def main() -> None:
    parser = task_parser(__doc__, "GGUF file", "llama-perplexity")
    parser.add_argument(
        "--context",
        type=int,
        default=2048,
        help="tokens of a task with all its choices, at most (default: 2048)",
    )
    args = parser.parse_args()
    found = measured(
        *(args.tasks, args.kind, args.count),
        lambda tasks: solved(tasks, args.kind, args.command, args.model, args.context),
    )
    found |= {"engine": "llama.cpp"}
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

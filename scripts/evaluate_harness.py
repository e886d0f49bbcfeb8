"""Measure how many tasks of a file a model directory solves, with lm-evaluation-harness.

It runs tasks that are written here from the file, as its own: of HellaSwag and multiple choice the
choice counts whose log-probability by its length in characters is the highest (acc_norm), of
WinoGrande the word after which the rest of the sentence is the most probable (acc). Nothing is
fetched, and no code of the model or of the file is run.

The JSON is what lib/formats/task_files.measured says, and {engine: lm-evaluation-harness, metric}.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lib.errors import UserError, program
from lib.flags.tasks import task_parser
from lib.formats.task_files import Task, measured

NAME = "own_file"
# No logits_cache: where the same words are divided into two parts in two ways, it gives one the
# log-probability of the other (0.4.13; EleutherAI/lm-evaluation-harness issue 2984).
# In 16 bits a sum of log-probabilities is rounded to half a nat.
MODEL = "pretrained={},dtype=auto,softmax_dtype=float32,logits_cache=False,trust_remote_code=False"


def metric(kind: str) -> str:
    """The harness's name for the score of its own tasks of this kind."""
    return "acc" if kind == "winogrande" else "acc_norm"


def row(task: Task, kind: str) -> dict[str, Any]:
    """A task's columns, as the harness wants them."""
    if kind == "winogrande":  # what is compared there is one text after several
        choices = [task.before + choice for choice in task.choices]
        return {"text": task.right, "choices": choices, "target": task.after.strip()}
    return {"text": task.before, "choices": task.choices, "target": task.right}


def solved(tasks: list[Task], kind: str, command: list[str], model: Path) -> list[bool]:
    """Whether each task is solved. command: lm_eval run, with flags. Raises UserError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (json.dumps(row(task, kind)) for task in tasks)
        (folder / "tasks.jsonl").write_text("\n".join(lines))
        declared = {
            "task": NAME,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "tasks.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            # Names of columns: a template would take a text of digits for a number.
            "doc_to_text": "text",
            "doc_to_choice": "choices",
            "doc_to_target": "target",
            "metric_list": [{"metric": metric(kind)}],
        }
        (folder / f"{NAME}.yaml").write_text(json.dumps(declared))
        (folder / "model").symlink_to(model.absolute())  # commas in its path would divide flags
        typed = [*command, "--model_args", MODEL.format(folder / "model"), "--tasks", NAME]
        typed += ["--include_path", name, "--output_path", f"{name}/out", "--log_samples"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": f"{name}/home"}
        status = subprocess.run(typed, env=os.environ | offline).returncode
        written = [*(folder / "out").rglob("samples_*.jsonl")]
        if status or len(written) != 1:
            said = f"ended with status {status} and {len(written)} files of samples, not with one"
            raise UserError(f"{command[0]} {said}; see above")
        with written[0].open(encoding="utf-8") as samples:
            found = sorted(map(json.loads, samples), key=lambda sample: sample["doc_id"])
    return [bool(sample[metric(kind)]) for sample in found]


def main() -> None:
    args = task_parser(__doc__, "model directory", "lm_eval run").parse_args()
    found = measured(
        *(args.tasks, args.kind, args.count),
        lambda tasks: solved(tasks, args.kind, args.command, args.model),
    )
    found |= {"engine": "lm-evaluation-harness", "metric": metric(args.kind)}
    args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)

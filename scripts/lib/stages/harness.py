"""Tasks by lm-evaluation-harness: the model's own weights, by another engine than llama.cpp."""

from typing import Any

from lib.record.artifact import Artifact
from lib.stages.environments import by_environment
from lib.stages.stage import Memory, Stage, Time


class HarnessStage(Stage):
    """Measure how many tasks of a file a model's own weights solve, with lm-evaluation-harness."""

    rule = "evaluate_harness"
    column = "evaluated"
    measures = True
    reads = ("model",)
    memory = Memory(8000, 1.2, 0, 1.2)  # as EvaluateTaskStage's; weights are loaded, not mapped
    time = Time(15, 100)
    tokens = 5_000_000  # of HellaSwag's 10,042 tasks, each read once for each ending
    gpu = "whole"
    fixed_threads = None
    typical = 1_000


STAGES = (HarnessStage(),)


def scores(shared: Any, name: str, section: Any, weights: Artifact) -> dict[str, Artifact]:
    """Declare {task: score} of a model. section: its `evaluate`. weights: the model directory."""
    return {
        task: shared.own_file(
            f"results/{name}/harness/{task}.json",
            "evaluate_harness",
            name,
            asked.file,
            options=asked.model_dump(include={"kind", "count"}),
            inputs={"model": weights},
            **by_environment(shared, "lm-eval"),
        )
        for task, asked in section.tasks.items()
    }

"""Quality of GGUF files, by llama-perplexity: KL divergence from the unquantized model."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from lib.formats.base_logits import base_logits_bytes
from lib.formats.task_files import READERS
from lib.keys.section import Choice, Number, Section, Text
from lib.keys.values import to_choice, to_mapping
from lib.record.artifact import Artifact
from lib.stages import convert
from lib.stages.convert import model_of
from lib.stages.family import Forms
from lib.stages.imatrix import CHUNKS
from lib.stages.sources import calibration
from lib.stages.stage import Counted, Memory, Size, Sizing, Stage, Time

# Characters of one token: vocabularies of 2,000 words cut finer than those of 100,000.
BYTES_PER_TOKEN = ((10_000, 2.4), (60_000, 3.3), (math.inf, 3.8))
USUAL_VOCABULARY = 128_256  # of a model that is not fetched yet

KINDS = tuple(READERS)
# What lib/formats/by_engine.py prints.
BY_ENGINE = Counted(r"chunk (\d+) of", r"chunk \d+ of (\d+)")


class TaskFile(Section):
    """A file of tasks, each a choice between texts, of which every GGUF should find the right one.

    The file alone may stand for it, where its name is a kind.
    """

    kind: Choice(Literal[KINDS]) | None = Field(
        None, description="What the file is; left out, its name is it."
    )
    file: Text = Field(description="The file, as llama-perplexity takes it.")
    count: Number(int, 1) | None = Field(
        None,
        description="Number of tasks to measure, evenly spread over the file; all if not given.",
    )
    context: Number(int, 128) = Field(
        2048, description="Tokens of a task with all its choices, at most."
    )


def to_tasks(value: Any) -> dict[str, dict[str, Any]]:
    """{name: keys of TaskFile}; an entry may be the file alone, and the name stands for the kind.

    Raises ValueError for a kind that is none.
    """
    found = {}
    for name, entry in to_mapping(value).items():
        found[name] = dict(entry) if isinstance(entry, Mapping) else {"file": entry}
        try:
            found[name]["kind"] = to_choice(found[name].get("kind") or name, KINDS)
        except ValueError as error:
            raise ValueError(f"{name}: kind: {error}") from None
    return found


class BaseLogitsStage(Stage):
    """Compute the unquantized model's logits over the evaluation text."""

    rule = "base_logits"
    # As an imatrix: the file is mapped, and every batch reads all of it.
    memory = Memory(3000, 1.1, 0, 1.1)
    time = Time(15, 100)
    tokens = 300_000  # 600 chunks of 512
    counted = CHUNKS
    gpu = "whole"
    fixed_threads = None

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """Chunks x context x vocabulary; without the option `chunks`, their number is a guess."""
        tensors = sizes.tensors(model_of(artifact.inputs["gguf"]))
        vocabulary = tensors.get("token_embd.weight", (0, USUAL_VOCABULARY))[1]
        context, chunks = artifact.options["context"], artifact.options.get("chunks")
        per_token = next(size for limit, size in BYTES_PER_TOKEN if vocabulary < limit)
        available = sizes.now(artifact.inputs["corpus"]).bytes / per_token / context
        read = max(1, min(chunks or math.inf, math.floor(available)))
        source = "tensors" if chunks else "guess"
        return Size(base_logits_bytes(read, context, vocabulary), source)


class EvaluateStage(BaseLogitsStage):
    """Measure one form against the base logits."""

    rule = "evaluate"
    column = "evaluated"
    measures = True
    reads = ("gguf",)  # and not the base logits, which it reads once, batch by batch
    bytes_per_weight = 0.5  # it also reads 2-bit files
    priority = 1
    typical = 1_000

    def size(self, artifact: Artifact, sizes: Sizing) -> None:
        """None: the file is small, and no formula predicts its size."""


class EvaluateTaskStage(EvaluateStage):
    """Measure how many tasks of a file one form solves."""

    rule = "evaluate_task"
    # Also the logits of 2,048 tokens, twice, of vocabularies of 256,000 words.
    memory = Memory(8000, 1.1, 0, 1.1)
    counted = Counted(r"(?m)^(\d+)\t", r"measuring (\d+) tasks")
    tokens = 2_000_000  # of HellaSwag's 10,042 tasks


STAGES = (BaseLogitsStage(), EvaluateStage(), EvaluateTaskStage())


def check(checks: Any, at: tuple, model: Any) -> None:
    """Report mistakes in `evaluate` of a model, at the key path `at` (lib/config/checks.Checks)."""
    tasks = model.evaluate.tasks
    check_tasks(checks, (*at, "tasks"), tasks)
    if tasks and model.gguf is None and not model.evaluate.harness:
        wanted = "only GGUF files are measured on tasks, and there is no gguf section"
        checks.add((*at, "tasks"), f"{wanted}; harness: true measures the model's own weights")
    if model.evaluate.harness and not tasks:
        checks.add((*at, "harness"), "there are no tasks to measure: name their files in tasks")
    if model.evaluate.harness and model.own_gguf:
        wanted = f"needs safetensors, and source is the GGUF file {model.source}"
        checks.add((*at, "harness"), wanted)


def check_tasks(checks: Any, at: tuple, tasks: Mapping[str, TaskFile]) -> None:
    """Report names that cannot be, and files that are no tasks. at: the key path of `tasks`."""
    checks.names(at, tasks)
    for name, task in tasks.items():
        checks.task_file((*at, name, "file"), task.file, task.kind)


def evaluate(shared: Any, found: Forms, name: str, section: Any, conversion: Artifact) -> None:
    """Declare the base logits of a model and an evaluation of each GGUF, on each text.

    found: the GGUFs, to which they are added. section: the model's `evaluate`. conversion: the
    unquantized GGUF.
    """
    tools, on = shared.by_llama_cpp(), (shared, found, name, section)
    base = base_logits(*on, conversion)
    on_each_text(*on, "evaluate", "gguf", base, **tools)
    for task, asked in section.tasks.items():
        found.tasks[task] = {
            form: shared.own_file(
                f"results/{name}/evaluation/tasks/{task}/{form}.json",
                "evaluate_task",
                name,
                asked.file,
                options=asked.model_dump(include={"kind", "count", "context"}),
                inputs={"gguf": gguf},
                **tools,
            )
            for form, gguf in found.forms.items()
        }
        found.artifacts += found.tasks[task].values()


def base_logits(
    shared: Any, found: Forms, name: str, section: Any, conversion: Artifact
) -> Callable[[str, Artifact], dict[str, Artifact]]:
    """A function for `on_each_text` that declares {"base": a text's base logits} when called.

    They are added to `found`, and the same for all families. conversion: the unquantized GGUF.
    """

    def declare(place: str, text: Artifact) -> dict[str, Artifact]:
        base = shared.once(
            f"{place}base.kld",
            "base_logits",
            _options(section),
            model=name,
            inputs={"gguf": conversion, "corpus": text},
            **shared.by_llama_cpp(),
            temporary=True,
        )
        found.artifacts.append(base)
        return {"base": base}

    return declare


def by_engine(
    shared: Any,
    found: Forms,
    name: str,
    model: Any,
    weights: Artifact,
    rule: str,
    role: str,
    unquantized: str,
    beside: Mapping[str, Artifact] | None = None,
    **details: Any,
) -> None:
    """As `on_each_text`, for an engine other than llama.cpp: its own error is measured too.

    All are measured against llama.cpp's base logits; nothing is, if the config does not ask for it.
    model: its config. weights: its directory. unquantized: what the evaluation of that is called,
    which each other has among its inputs, as `floor`. beside: further inputs.
    """
    section = model.evaluate
    if section is None:
        return
    conversion = convert.conversion(shared, name, model, weights)
    found.artifacts.append(conversion)
    base = base_logits(shared, found, name, section, conversion)
    plain = Forms(forms={unquantized: weights})

    def with_base(place: str, text: Artifact) -> dict[str, Artifact]:
        return base(place, text) | (beside or {})

    def with_floor(place: str, text: Artifact) -> dict[str, Artifact]:
        measured = {up.path: up for up in plain.artifacts}
        return with_base(place, text) | {"floor": measured[f"{place}{unquantized}.json"]}

    for forms, inputs in ((plain, with_base), (found, with_floor)):
        on_each_text(shared, forms, name, section, rule, role, inputs, **details)
    found.artifacts += plain.artifacts


def on_each_text(
    shared: Any,
    found: Forms,
    name: str,
    section: Any,
    rule: str,
    role: str,
    others: Callable[[str, Artifact], dict[str, Artifact]],
    **details: Any,
) -> None:
    """Declare an evaluation of each form of a family on each text, and add them to its artifacts.

    found: what the family makes of the model `name`. section: the model's `evaluate`. rule: that
    makes the evaluations. role: of the form among their inputs. others(where the paths of a text's
    evaluations begin, the text): the inputs beside form and texts. details: further fields of
    Artifact.
    """
    for corpus, folder in section.texts.items():
        place, text = f"results/{name}/evaluation/{folder}", shared.corpus(corpus)
        more = others(place, text)
        made = {
            form: Artifact(
                f"{place}{form}.json",
                rule,
                name,
                {"corpus": corpus, **_options(section)},
                inputs={role: up, **more, "corpus": text, **calibration(up)},
                **details,
            )
            for form, up in found.forms.items()
        }
        (found.also.setdefault(corpus, {}) if folder else found.evaluations).update(made)
        found.artifacts += made.values()


def _options(section: Any) -> dict[str, Any]:
    return section.model_dump(include={"context", "chunks"})

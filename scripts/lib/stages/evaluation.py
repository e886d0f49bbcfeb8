"""Quality of GGUF files, by llama-perplexity: KL divergence from the unquantized model."""

import math
from typing import Any

from lib.formats.base_logits import base_logits_bytes
from lib.record.artifact import Artifact
from lib.stages.convert import model_of
from lib.stages.sources import calibration
from lib.stages.stage import Memory, Size, Sizing, Stage, Time

# Characters of one token: vocabularies of 2,000 words cut finer than those of 100,000.
BYTES_PER_TOKEN = ((10_000, 2.4), (60_000, 3.3), (math.inf, 3.8))
USUAL_VOCABULARY = 128_256  # of a model that is not fetched yet


class BaseLogitsStage(Stage):
    """Compute the unquantized model's logits over the evaluation text."""

    rule = "base_logits"
    # As an imatrix: the file is mapped, and every batch reads all of it.
    memory = Memory(3000, 1.1, 0, 1.1)
    time = Time(15, 100)
    tokens = 300_000  # 600 chunks of 512
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


STAGES = (BaseLogitsStage(), EvaluateStage())


def evaluate(
    shared: Any,
    on: tuple[str, str],
    name: str,
    section: Any,
    conversion: Artifact,
    forms: dict[str, Artifact],
) -> tuple[Artifact, dict[str, Artifact]]:
    """Declare the base logits of a model and an evaluation of each form, on one text.

    on: (where their paths begin, the text). name: the model's. section: its `evaluate`. conversion:
    the unquantized GGUF. forms: {form: GGUF}. Returns the base logits and {form: evaluation}.
    """
    (place, corpus), text = on, shared.corpus(on[1])
    options = {"context": section.context, "chunks": section.chunks}
    base = Artifact(
        f"{place}base.kld",
        "base_logits",
        name,
        options,
        inputs={"gguf": conversion, "corpus": text},
        **shared.by_llama_cpp(),
        intermediate=True,
        temporary=True,
    )
    evaluations = {
        form: Artifact(
            f"{place}{form}.json",
            "evaluate",
            name,
            {"corpus": corpus, **options},
            inputs={"gguf": gguf, "base": base, "corpus": text, **calibration(gguf)},
            **shared.by_llama_cpp(),
        )
        for form, gguf in forms.items()
    }
    return base, evaluations

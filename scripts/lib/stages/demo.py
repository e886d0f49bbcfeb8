"""The embedded default's own text and models (rules/demo.smk)."""

from typing import Any

from lib.formats.weights import Weights, llama_weights
from lib.record.artifact import Artifact
from lib.record.bound import Bound
from lib.record.tools import package_version
from lib.stages.stage import Counted, Sizing, Stage

PLACE = "resources/demo"
# The model that scripts/demo_train.py makes by default.
SHAPE = {"layers": 4, "hidden": 256, "ffn": 768, "vocabulary": 2048, "heads": 4, "kv_heads": 2}
TRAINERS = ("torch", "transformers", "sentencepiece")


class DemoTextStage(Stage):
    """Text of the Python library's own documentation."""

    rule = "demo_text"
    bound = Bound.ANYWHERE
    typical = 4_200_000


class DemoBaseStage(Stage):
    """A model of 4 million parameters, trained in minutes."""

    rule = "demo_base"
    makes_model = True
    counted = Counted(r"step (\d+)/", r"step \d+/(\d+)")
    fixed_threads = 2  # of torch: the trained bytes depend on it

    def weights(self, artifact: Artifact, sizes: Sizing) -> Weights:
        """The tensors of a Llama of SHAPE, which the training makes."""
        return llama_weights(**SHAPE)


class DemoFinetuneStage(DemoBaseStage):
    """The base, trained further with one domain only."""

    rule = "demo_finetune"


STAGES = (DemoTextStage(), DemoBaseStage(), DemoFinetuneStage())


def text(shared: Any) -> Artifact:
    """The directory of the demo's texts. shared: lib/stages/shared.Shared."""
    versions = {"python": package_version("python")}
    return shared.once(f"{PLACE}/text", "demo_text", {}, tools=versions, directory=True)


def model(shared: Any, name: str) -> Artifact:
    """An artifact of the demo by name: `text`, `base`, or a model trained from it, `code`, `prose`.

    shared: lib/stages/shared.Shared.
    """
    inputs, rule, options = {"text": text(shared)}, "demo_base", {}
    if name == "text":
        return inputs["text"]
    if name != "base":
        inputs, rule = {"base": model(shared, "base"), **inputs}, "demo_finetune"
        options = {"domain": name}
    versions = {tool: package_version(tool) for tool in TRAINERS}
    return shared.once(
        f"{PLACE}/{name}", rule, options, inputs=inputs, tools=versions, directory=True
    )

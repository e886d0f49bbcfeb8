"""Mixtures of experts, by mergekit-moe: models of one kind become the experts of each layer."""

from collections.abc import Iterator
from typing import Any

from lib.formats import moe_architectures
from lib.formats.mixture import Shape
from lib.formats.moe_references import moe_references
from lib.formats.weights import DTYPE_BYTES, Weights
from lib.record.artifact import Artifact
from lib.record.tools import package_version
from lib.stages.checked import Inspector, Row
from lib.stages.merge import TOOLS, MergeStage
from lib.stages.stage import Cost, Memory, Sizing, Time

# What must be equal in the models of a mixture, by their keys in config.json.
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers")


class MoeStage(MergeStage):
    """Build a mixture of experts with mergekit-moe."""

    rule = "moe"
    # Two experts and a base of 2.2 GB each: 10 core seconds, 4.1 GiB with any gate mode (measured).
    cost = Cost(6, 0.6)
    # It copies tensor by tensor and keeps up to 5 GB for a shard; but `gate_mode: hidden` loads the
    # whole base model, which is at most half of what is read.
    memory = Memory(1500, 1.0, 6000, 0.5)
    time = Time(20, 50)
    # scripts/moe.py gives torch 4 threads as scripts/merge.py does, so `threads` is a merge's.

    def weights(self, artifact: Artifact, sizes: Sizing) -> Weights | None:
        """The base model's tensors, with as many of its feed-forward parts as there are experts."""
        moe, like = artifact.options["moe"], sizes.weights(_base(artifact))
        if like is None or not like.tensors:
            return None
        try:
            output = moe_architectures.choose(moe, [like.shape.family])
            tensors = dict(moe_architectures.tensors_of(moe, output, like.tensors))
        except (ValueError, KeyError):
            return None  # of models that this knows nothing of: the step says so
        experts = len(moe["experts"])
        shape = Shape(like.shape.layers, like.shape.sharing, experts, output.model_type)
        wide = DTYPE_BYTES.get(str(moe.get("dtype")).removeprefix("torch."), like.bytes_per_weight)
        return Weights(tensors, shape, wide, like.tokenizer, like.side_files)

    def download(self, artifact: Artifact, sizes: Sizing) -> int:
        """The downloads of all its models, which is somewhat more than the mixture."""
        return sum(map(sizes.download, artifact.inputs.values()))


STAGES = (MoeStage(),)


def _base(artifact: Artifact) -> Artifact:
    """The model whose attention, embeddings and tokenizer the mixture has."""
    return artifact.inputs[f"model {moe_references(artifact.options['moe'])[0].parts[0]}"]


def moe(shared: Any, name: str, model: Any) -> Artifact:
    """Declare the mixture that a model is. model: its section (lib/config/schema.Model)."""
    options: dict[str, Any] = {"moe": model.moe}
    if moe_architectures.draws(model.moe):
        options["random_seed"] = model.random_seed
    if model.allow_pickle:
        options["allow_pickle"] = True
    published = model.publish is not None and model.publish.safetensors is not None
    reclaimed = "safetensors" in shared.config.reclaim and not published
    return shared.once(
        f"results/{name}/safetensors",
        "moe",
        options,
        model=name,
        inputs={
            f"model {part}": shared.weights(part, model.allow_pickle) for part in model.parts()
        },
        tools={tool: package_version(tool) for tool in TOOLS},
        directory=True,
        intermediate=model.has_forms,
        temporary=reclaimed and model.has_forms,
    )


def fault(moe: dict[str, Any], configs: list[dict[str, Any]], in_llama_cpp: bool) -> str | None:
    """Why the models cannot be a mixture, in words; None if they can.

    moe: a configuration without mistakes of form. configs: the config.json of each of its models
    that is known, the base's first if that is. in_llama_cpp: whether a GGUF is made of it.
    """
    kinds = [config["model_type"] for config in configs if config.get("model_type")]
    if not kinds:
        return None
    try:
        output = moe_architectures.choose(moe, kinds)
    except ValueError as error:
        return str(error)
    for key in SHAPE:
        known = {str(config[key]) for config in configs if key in config}
        found = sorted(known, key=lambda text: (len(text), text))
        if len(found) > 1:
            return f"the models of a mixture must have one {key}, not {' and '.join(found)}"
    return moe_architectures.in_llama_cpp(moe, output) if in_llama_cpp else None


def preflight(inspector: Inspector, name: str, model: Any) -> Iterator[Row]:
    """Check that the models of a mixture fit together; no row for another model."""
    if model.moe is None:
        return
    found = {part: inspector.config(part) for part in model.parts()}
    known = {part: config for part, config in found.items() if config is not None}
    if not known:
        return
    wrong = fault(model.moe, list(known.values()), model.conversion is not None)
    if wrong:
        yield Row(name, "problem", wrong)
        return
    sizes = {part: config.get("vocab_size") for part, config in known.items()}
    first = next(iter(sizes))
    for part, size in sizes.items():
        if size != sizes[first]:
            text = f"{part} has {size} tokens, {first} {sizes[first]}; its expert never saw these"
            yield Row(name, "note", f"{text}, and the tokenizer is the base model's")
    yield Row(name, "ok", f"its {len(known)} models fit together")

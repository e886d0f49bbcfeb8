"""Merges, by mergekit."""

from typing import Any

from lib.formats.merge_references import merge_references
from lib.formats.mixture import Shape
from lib.formats.weights import DTYPE_BYTES, Weights, layer_ranges, stacked
from lib.record.artifact import Artifact
from lib.record.tools import package_version
from lib.stages.stage import Cost, Memory, Sizing, Stage, Time

TOOLS = ("mergekit", "torch", "transformers")
# Methods of mergekit 0.1.5 whose result depends on random_seed: they drop or sample at random.
DRAWING_METHODS = ("arcee_fusion", "dare_linear", "dare_ties", "della", "della_linear")


class MergeStage(Stage):
    """Merge models with mergekit."""

    rule = "merge"
    column = "merge"
    is_long = is_weights = makes_model = True
    cost = Cost(9, 2)  # on a GPU 0.8 a GB, on two cores 3.2
    # mergekit reads lazily, tensor by tensor, but in every model at once, as float32 with a task
    # vector each, and keeps up to 5 GB of finished tensors for their shard (ties of three models of
    # 1.5 GB: 4.4 GB, measured).
    memory = Memory(2500, 1.5, 10000, 0.12)
    # ties, three models, two busy cores: 12 MB/s (measured); most methods are faster.
    time = Time(20, 15)
    output = 1.0  # of n models it is 1/n of the input, of a stacked one up to all of it

    def threads(self, size: int, cores: int, jobs: int) -> int:
        """4, which scripts/merge.py gives torch whatever the machine; on few cores half of them.

        Reading and writing take most of the time, so that two merges go side by side well.
        """
        return min(4, max(1, cores // 2))

    def weights(self, artifact: Artifact, sizes: Sizing) -> Weights | None:
        """The first model's tensors in the merge's dtype; with `slices`, the stacked layers."""
        merge, first = artifact.options["merge"], _first(artifact)
        like = sizes.weights(first) if first else None
        if like is None:
            return None
        written = merge.get("out_dtype") or merge.get("dtype")
        wide = DTYPE_BYTES.get(written, like.bytes_per_weight)
        tensors, shape = like.tensors, like.shape
        if merge.get("slices"):
            tensors = dict(stacked(merge["slices"], tensors))
            layers = sum(end - start for start, end in layer_ranges(merge["slices"]))
            shape = Shape(layers, shape.sharing, shape.experts, shape.family)
        return Weights(tensors, shape, wide, like.tokenizer, like.side_files)

    def download(self, artifact: Artifact, sizes: Sizing) -> int:
        """The download of the first model, which is as large as the merge."""
        first = _first(artifact)
        return sizes.download(first) if first else 0


STAGES = (MergeStage(),)


def _first(artifact: Artifact) -> Artifact | None:
    """The model whose shape the result has."""
    first = merge_references(artifact.options["merge"])[0].parts[0]
    return artifact.inputs.get(f"model {first}")


def seed_of(config: dict[str, Any], random_seed: int) -> int | None:
    """The seed, if it decides the merge; None for a method that does not draw."""
    return random_seed if config.get("merge_method") in DRAWING_METHODS else None


def of_model(shared: Any, name: str, model: Any) -> Artifact:
    """Declare the merge of a model. model: its section (lib/config/schema.Model)."""
    published = model.publish is not None and model.publish.safetensors is not None
    reclaimed = "safetensors" in shared.config.reclaim and not published
    return merge(
        shared,
        name,
        model.merge,
        model.random_seed,
        model.allow_pickle,
        model=name,
        intermediate=model.has_forms,
        temporary=reclaimed and model.has_forms,
    )


def merge(
    shared: Any,
    place: str,
    config: dict[str, Any],
    random_seed: int,
    allow_pickle: bool,
    uses: dict[str, Artifact] | None = None,
    **details: Any,
) -> Artifact:
    """Declare the merge results/PLACE/safetensors.

    If a model that the config names before has the same merge, that is made first, and this one is
    linked to it (step.sh, `same`); else to what `uses` names so. config: mergekit's. uses, details:
    fields of Artifact.
    """
    parts = (part for found in merge_references(config) for part in found.parts)
    options: dict[str, Any] = {"merge": config}
    seed = seed_of(config, random_seed)
    if seed is not None:
        options["random_seed"] = seed
    if allow_pickle:
        options["allow_pickle"] = True
    if first := shared.same_merge(place, config, seed, allow_pickle):
        uses = (uses or {}) | {"same": first}
    return shared.once(
        f"results/{place}/safetensors",
        "merge",
        options,
        inputs={
            f"model {part}": shared.weights(part, allow_pickle) for part in dict.fromkeys(parts)
        },
        tools={tool: package_version(tool) for tool in TOOLS},
        uses=uses or {},
        directory=True,
        **details,
    )

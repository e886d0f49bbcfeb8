"""Quants, by llama-quantize; their header fields and their shards."""

import os
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, model_validator

from lib.flags.quantize import quantize_flags
from lib.formats.fallbacks import Fallbacks, planned, shape_of
from lib.formats.mixture import Dims, Shape, quant_bytes, quant_types
from lib.formats.quants import QUANT_TYPES, TENSOR_ABORTS_WITHOUT_IMATRIX, TENSOR_NEEDS_IMATRIX
from lib.formats.weights import header_bytes, is_matrix
from lib.keys import values
from lib.keys.section import Flag, Read, Section, TensorType, Text, TextList, Texts
from lib.record.artifact import Artifact
from lib.record.bound import Bound
from lib.record.tools import package_version
from lib.stages.convert import QUANTIZED_OUTTYPES, model_of, outtype_bits
from lib.stages.stage import Cost, Memory, Size, Sizing, Stage, Time, locked_size

TOOL = Path("resources/llama.cpp/bin/llama-quantize")
# Core seconds for a GB of BF16, with an imatrix, by the beginning of a type's name (docs/speed.md).
COSTS = {"Q8": 5, "Q6_K": 28, "Q5_K": 65, "Q4_K": 75, "Q3_K": 50, "Q2_K": 60}
COSTS |= {"IQ4": 150, "IQ3": 240, "IQ2": 300, "IQ1": 550, "": 25}
# The name that replaces an invalid quant in the list, so that the others keep their numbers.
INVALID = "\0"
UNREAD = "Q2_0"  # a type of llama.cpp b10605 that gguf 0.19.0 cannot read, nor reports and cards
QuantType = Read(str, values.to_quant_type, {"type": "string", "examples": list(QUANT_TYPES)})


class Quant(Section):
    """One quant: a type of llama-quantize and what deviates from its mixture.

    In the list a type alone, such as `Q4_K_M`, stands for `{type: Q4_K_M}`.
    """

    name: Text = Field(
        "", description="Name in file names and reports; the type as written if left out."
    )
    type: QuantType = Field(
        description="A type that llama-quantize lists; `Q3_K`, `Q4_K` and `Q5_K` mean their `_M`."
    )
    imatrix: Flag = Field(True, description="Use the model's imatrix; false for a static quant.")
    token_embedding_type: TensorType | None = Field(
        None, description="Tensor type of the token embeddings (--token-embedding-type)."
    )
    output_tensor_type: TensorType | None = Field(
        None, description="Tensor type of output.weight (--output-tensor-type)."
    )
    tensor_types: Read(list[str], values.to_tensor_types, dict[str, str] | Texts) = Field(
        [],
        description="Overrides `PATTERN=TYPE`, or a mapping of patterns to types: the first "
        "pattern (a regular expression, in lower case) found in a tensor's name decides "
        "(--tensor-type).",
    )
    leave_output_tensor: Flag = Field(
        False, description="Leave output.weight unquantized (--leave-output-tensor)."
    )
    pure: Flag = Field(False, description="All tensors in the one type, no mixture (--pure).")
    allow_requantize: Flag = Field(
        False, description="Quantize from an `outtype` that is itself quantized."
    )
    exclude_weights: TextList = Field(
        [], description="Tensors (parts of names) for which the imatrix is not used."
    )
    include_weights: TextList = Field(
        [], description="The only tensors (parts of names) for which the imatrix is used."
    )
    override_kv: Read(list[str], values.to_override_kv, Texts) = Field(
        [], description="Header values `KEY=TYPE:VALUE`; int, float, bool or str."
    )
    prune_layers: Read(list[int], values.to_layers, int | list[int]) = Field(
        [],
        description="Numbers of layers to leave out of the model, the last ones: of others "
        "llama-quantize b10605 keeps the wrong data.",
    )

    @model_validator(mode="before")
    @classmethod
    def _named_after_type(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("name"):
            return value
        type_ = value.get("type")
        return {**value, "name": type_.upper()} if isinstance(type_, str) else value

    def is_conversion(self, conversion: str) -> bool:
        """Whether this entry only names the conversion (`- BF16`): its type, without any option.

        Then no quant is made: the conversion itself is kept, split and published.
        """
        if not self.name == self.type == conversion:
            return False
        return not self.model_dump(exclude={"name", "type", "imatrix"}, exclude_defaults=True)


class QuantizeStage(Stage):
    """Quantize the unquantized GGUF."""

    rule = "quantize"
    bound = Bound.ANYWHERE
    column = "quants"
    is_weights = True
    # llama-quantize holds one tensor as read, as float32 and as output: 4.8 times the 16-bit size
    # of the largest (1.3 GB at 268 MB; b10605, measured). It lets go of mapped pages as it goes.
    memory = Memory(1000, 5.0, 9000, 0.03)
    # The slowest types decide: IQ1 to IQ3 search grids at about a tenth of the K-quants' speed.
    time = Time(15, 10)
    output = 1.0  # Q8_0 is half; F32 never
    fixed_threads = None
    takes_all = True

    def cost_of(self, artifact: Artifact) -> Cost:
        """By the type: IQ types cost up to ten times a K-quant's time."""
        type_ = artifact.options["type"]
        return Cost(1, next(cost for prefix, cost in COSTS.items() if type_.startswith(prefix)))

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """From `llama-quantize --dry-run` if the input is on disk, else from the mixture."""
        return dry_run(artifact) or _by_mixture(artifact, sizes)

    def fallbacks(self, artifact: Artifact, sizes: Sizing) -> Fallbacks | None:
        """The tensors that llama-quantize will store in another type than the mixture's."""
        facts = material(artifact, sizes)
        if facts is None:
            return None
        tensors, shape, _, _ = facts
        options = artifact.options
        return planned(tensors, shape, options["type"], options, "imatrix" in artifact.inputs)

    def impossible(self, artifact: Artifact, sizes: Sizing) -> str | None:
        """If it leaves out other layers than the last ones.

        Then llama-quantize b10605 writes the data of the wrong layers, or ends by SIGSEGV: it reads
        a layer that is numbered anew under its new number. check_quant.py finds it too.
        """
        pruned = artifact.options.get("prune_layers", ())
        tensors = sizes.tensors(model_of(artifact.inputs["gguf"])) if pruned else {}
        layers = {int(found[1]) for name in tensors if (found := re.match(r"blk\.(\d+)\.", name))}
        if not layers or set(pruned) == set(sorted(layers)[-len(pruned) :]):
            return None
        return (
            f"{artifact.path}: prune_layers: {list(pruned)}, and llama-quantize b10605 can leave "
            f"out only the last layers (the last is {max(layers)}): of others it keeps the data"
        )


class LabelStage(Stage):
    """Set header fields in a finished GGUF."""

    rule = "label"
    bound = Bound.ANYWHERE
    column = "labelled"
    is_weights = True
    # One tensor at a time (271 MB at 268 MB, measured).
    memory = Memory(1000, 1.0, 4000, 0.02)
    time = Time(10, 60)
    output = 1.0

    def size(self, artifact: Artifact, sizes: Sizing) -> Size:
        """The size of the GGUF without the new fields."""
        return sizes.now(artifact.inputs["gguf"])


class SplitStage(LabelStage):
    """Cut a GGUF into shards."""

    rule = "split"
    column = "shards"

    def size(self, artifact: Artifact, sizes: Sizing) -> Size:
        """The size of the whole file; 0 if it fits into one shard, which is only a link."""
        whole, limit = sizes.now(artifact.inputs["gguf"]), artifact.options["split_max_size"]
        return Size(0 if whole.bytes <= values.bytes_of(limit) else whole.bytes, whole.source)

    def links(self, artifact: Artifact) -> bool:
        """True: a single shard is a link to the whole file."""
        return True


STAGES = (QuantizeStage(), LabelStage(), SplitStage())


def _by_mixture(artifact: Artifact, sizes: Sizing) -> Size | None:
    """The size by each tensor's type in the mixture, or by the type's usual bpw."""
    type_, options = artifact.options["type"], artifact.options
    facts = material(artifact, sizes)
    if facts is None:
        return locked_size(model_of(artifact.inputs["gguf"]), sizes, QUANT_TYPES[type_].bpw)
    tensors, shape, header, bits = facts
    types = quant_types(tensors, shape, type_, options, "imatrix" in artifact.inputs)
    return Size(quant_bytes(tensors, types, bits.items()) + header, "tensors")


def material(
    artifact: Artifact, sizes: Sizing
) -> tuple[dict[str, Dims], Shape, int, dict[str, float]] | None:
    """The facts from which the size and the fallbacks of a quant, or of a mix, are computed.

    Returns ({tensor: dims}, the model's shape, bytes of the header, {tensor: bits per weight before
    quantizing}); None if only the size of the model's files is known.
    """
    conversion = artifact.inputs["gguf"]
    model = model_of(conversion)
    tensors = _left(artifact, sizes.tensors(model))
    if conversion.file:
        file = _gguf(conversion.file)
        header = min(tensor.offset for tensor in file.tensors)
        bits = {tensor.name: 8 * tensor.size / tensor.elements for tensor in file.tensors}
        return tensors, shape_of(file.metadata), header, bits
    weights = sizes.weights(model)
    if weights is None:
        return None
    wide = outtype_bits(conversion)
    bits = {name: wide if is_matrix(name, dims) else 32.0 for name, dims in tensors.items()}
    return tensors, weights.shape, header_bytes(weights, len(tensors)), bits


def _left(artifact: Artifact, tensors: dict[str, Dims]) -> dict[str, Dims]:
    """The tensors of a quant: those of its model without the layers that it leaves out."""
    pruned = {f"blk.{layer}." for layer in artifact.options.get("prune_layers", ())}
    return {
        name: dims for name, dims in tensors.items() if name[: name.find(".", 4) + 1] not in pruned
    }


def dry_run(artifact: Artifact) -> Size | None:
    """The size that `llama-quantize --dry-run` prints; None if it fails or a file is missing."""
    gguf, imatrix = artifact.inputs["gguf"].path, artifact.inputs.get("imatrix")
    needed = [gguf, TOOL, *([imatrix.path] if imatrix else [])]
    if not all(map(os.path.isfile, needed)):
        return None
    flags = ["--imatrix", imatrix.path] if imatrix else []
    flags += quantize_flags(artifact.options)
    command = [str(TOOL), "--dry-run", *flags, gguf, artifact.options["type"]]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"quant size\s*=\s*([\d.]+) MiB", said.stdout + said.stderr)
    if said.returncode or not found:
        return None
    header = min(tensor.offset for tensor in _gguf(gguf).tensors)
    return Size(round(float(found[1]) * 2**20) + header, "dry run")


@cache
def _gguf(path: str) -> Any:
    """A GGUF file's header, read once for all quants."""
    from lib.formats.gguf_file import read_gguf  # takes 0.08 s

    return read_gguf(Path(path))


def check(checks: Any, at: tuple, quant: Quant, model: Any) -> None:
    """Report mistakes in one quant of a model, at the key path `at` (lib/config/checks.Checks)."""
    imatrix = model.gguf.imatrix
    uses_imatrix = bool(imatrix) and quant.imatrix
    why = "this quant has imatrix: false" if imatrix else "the model has no gguf.imatrix"
    if quant.type == UNREAD:
        checks.add(
            (*at, "type"), f"{UNREAD} cannot be read by gguf 0.19.0: the file could not be checked"
        )
    if QUANT_TYPES[quant.type].needs_imatrix and not uses_imatrix:
        checks.add((*at, "type"), f"{quant.type} needs an imatrix, and {why}")
    for override in quant.tensor_types:
        if override.rpartition("=")[2] in TENSOR_NEEDS_IMATRIX and not uses_imatrix:
            checks.add((*at, "tensor_types"), f"{override} needs an imatrix, and {why}")
    for key in ("exclude_weights", "include_weights"):
        if getattr(quant, key) and not uses_imatrix:
            checks.add((*at, key), f"has no effect without an imatrix, and {why}")
    if "imatrix" in quant.model_fields_set and quant.imatrix and not imatrix:
        checks.add((*at, "imatrix"), "is true, but the model has no gguf.imatrix")
    if quant.exclude_weights and quant.include_weights:
        checks.add(at, "exclude_weights and include_weights exclude each other")
    if quant.leave_output_tensor and quant.output_tensor_type:
        checks.add(at, "leave_output_tensor and output_tensor_type exclude each other")
    if quant.token_embedding_type in TENSOR_ABORTS_WITHOUT_IMATRIX:
        needs = f"{quant.token_embedding_type} needs an imatrix"
        message = f"{needs}, and an imatrix has nothing on token embeddings"
        checks.add((*at, "token_embedding_type"), message)
    own, outtype = model.own_gguf, model.gguf.outtype
    quantized = own.quantized if own else outtype in QUANTIZED_OUTTYPES
    if not quantized or quant.allow_requantize:
        return
    if own:
        got = f"source {model.source} is quantized already ({model.conversion})"
        checks.add(at, f"{got}: give the unquantized file, or set allow_requantize: true")
    else:
        got = f"outtype {outtype} is quantized already"
        checks.add(at, f"{got}: choose bf16, f16 or f32, or set allow_requantize: true")


def quantize(
    shared: Any, name: str, quant: Quant, conversion: Artifact, imatrix: Artifact | None
) -> Artifact:
    """Declare a quant of a model.

    conversion: the unquantized GGUF. imatrix: the model's; `quant` may say not to use it.
    """
    inputs = {"gguf": conversion}
    if imatrix is not None and quant.imatrix:
        inputs["imatrix"] = imatrix
    return Artifact(
        f"results/{name}/gguf/{name}-{quant.name}.gguf",
        "quantize",
        name,
        quant.model_dump(exclude={"name", "imatrix"}, exclude_defaults=True),
        inputs=inputs,
        **shared.by_llama_cpp(),
    )


def label(name: str, gguf: Artifact, metadata: dict[str, Any]) -> Artifact:
    """Declare the copy of a finished GGUF that has the config's header fields.

    The copy is split and published; quants are never made from it. metadata: {field: value}.
    """
    return Artifact(
        f"results/{name}/labelled/{PurePosixPath(gguf.path).name}",
        "label",
        name,
        {"metadata": metadata},
        inputs={"gguf": gguf},
        tools={"gguf": package_version("gguf")},
    )


def split(shared: Any, name: str, form: str, gguf: Artifact, max_size: str) -> Artifact:
    """Declare the shards of a GGUF, each of at most `max_size` (such as 500M or 50G)."""
    return Artifact(
        f"results/{name}/shards/{form}",
        "split",
        name,
        {"split_max_size": str(max_size)},
        inputs={"gguf": gguf},
        **shared.by_llama_cpp(),
        directory=True,
    )

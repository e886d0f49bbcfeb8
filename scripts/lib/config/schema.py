"""The config as pydantic models: every key with its type, default, limits and description.

The descriptions are the documentation: dev/config_docs.py makes config/schema.json and the
tables of config/README.md from them. How single values are read is in values.py; what concerns
several keys at once is checked in checks.py.
A key with nothing after it is as if left out; a section with nothing in it has its defaults.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from lib.formats.quants import QUANT_TYPES, TENSOR_BITS
from lib.keys import values

Cuda = Literal["auto", "on", "off"]
Outtype = Literal["bf16", "f16", "f32", "q8_0", "tq1_0", "tq2_0", "auto"]
Reclaimable = Literal["safetensors", "bf16"]
Texts = str | list[str]


def Read(type_: Any, read: Any, written: Any = None) -> Any:
    """A value that one of the functions of values.py reads.

    written: how it may be written, for the schema: a type or a JSON schema; as `type_` if None.
    """
    if isinstance(written, dict):
        return Annotated[type_, BeforeValidator(read), WithJsonSchema(written)]
    return Annotated[type_, BeforeValidator(read, json_schema_input_type=written or type_)]


def Number(type_: type, low: float, high: float | None = None) -> Any:
    """A finite number (int: a whole one) within limits, both included."""
    read = partial(values.to_number, low=low, high=high, whole=type_ is int)
    written = {"type": "integer" if type_ is int else "number", "minimum": low}
    return Read(type_, read, written if high is None else {**written, "maximum": high})


def Choice(literal: Any) -> Any:
    """One of the words of a Literal, in any case."""
    read = partial(values.to_choice, known=get_args(literal))
    return Read(literal, read, bool | literal if "on" in get_args(literal) else literal)


Text = Read(str, values.to_text)
Flag = Read(bool, values.to_flag)
Size = Read(str, values.to_size, {"type": "string", "pattern": "^[0-9]+[MG]$"})
Sha256 = Read(str, values.to_sha256, {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"})
Repository = Read(str, values.to_repository, {"type": "string", "pattern": "^[^/@]+/[^/@]+$"})
Exl2Repository = Read(
    str, values.to_exl2_repository, {"type": "string", "pattern": "^[^/@{}]+/[^/@]+$"}
)
QuantType = Read(str, values.to_quant_type, {"type": "string", "examples": list(QUANT_TYPES)})
TensorType = Read(str, values.to_tensor_type, {"type": "string", "examples": list(TENSOR_BITS)})
Words = Read(list[str], values.to_words, Texts)
TextList = Read(list[Text], values.to_list, Texts)


class Section(BaseModel):
    """A mapping of the config: unknown keys are errors, a null is as if left out."""

    # defer_build: only Config and Options are validated by themselves; saves a third of the import.
    model_config = ConfigDict(extra="forbid", defer_build=True)
    # Keys that hold sections themselves: with nothing after them they have their defaults.
    sections: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return {
                key: {} if entry is None else entry
                for key, entry in value.items()
                if entry is not None or key in cls.sections
            }
        keys = ", ".join(cls.model_fields)
        raise ValueError(f"must be a mapping with keys of {keys}, not {values.show(value)}")


class GgufSource(NamedTuple):
    """What the header of a GGUF file says of the model in it."""

    form: str
    """Its type as forms are named: BF16, Q8_0."""
    quantized: bool
    """Not in floats alone."""
    experts: int
    """How many a layer has; 0 for a dense model."""


class LlamaCpp(Section):
    """llama.cpp's converter and tools."""

    cuda: Choice(Cuda) = Field(
        "auto", description="Build the tools with CUDA: `auto` where nvcc and a GPU are."
    )
    path: Text | None = Field(
        None,
        description="Directory of your own llama.cpp, used instead of building the pinned one.",
    )
    portable: Flag = Field(
        False,
        description="Build tools that run on any CPU of the architecture, for clusters of mixed "
        "nodes, and not only on CPUs like this machine's.",
    )


class Corpus(Section):
    """A text for calibration or evaluation: a `path`, a `url` or a `hub` dataset."""

    path: Text | None = Field(
        None, description="A .txt or .parquet file, relative to the working directory."
    )
    url: Text | None = Field(None, description="Where to download it; needs `sha256`.")
    sha256: Sha256 | None = Field(
        None, description="Digest of the file at `url`: 64 hexadecimal digits."
    )
    hub: Repository | None = Field(
        None, description="A dataset on the Hugging Face hub, org/name; needs `file`."
    )
    file: Text | None = Field(None, description="The file within the `hub` dataset.")
    revision: Text | None = Field(
        None, description="Branch, tag or commit of the `hub` dataset; its main branch if left out."
    )

    def origin(self) -> str:
        """The file that it comes from, with its suffix."""
        return self.path or self.file or (self.url or "").partition("?")[0].partition("#")[0]

    def reference(self) -> str:
        """A hub dataset as org/name or org/name@revision."""
        return f"{self.hub}@{self.revision}" if self.revision else str(self.hub)


class Imatrix(Section):
    """An importance matrix: a file of yours, or made by llama-imatrix of the unquantized model."""

    file: Text | None = Field(
        None,
        description="A matrix that you have, .dat or .gguf, in place of a computed one; no other "
        "key beside it.",
    )
    corpus: Text = Field("calibration", description="Name of the calibration text in `corpora`.")
    chunks: Number(int, 1) | None = Field(
        None, description="Number of chunks of the text to use; all if left out."
    )
    context: Number(int, 8) = Field(512, description="Tokens in a chunk.")
    format: Choice(Literal["dat", "gguf"]) = Field(
        "dat", description="File format, and the suffix of results/MODEL/imatrix.*."
    )
    process_output: Flag = Field(
        False, description="Collect data for the output tensor too (--process-output)."
    )
    parse_special: Flag = Field(
        False, description="Read special tokens in the text as such (--parse-special)."
    )
    batch_size: Number(int, 1) | None = Field(
        None, description="Logical batch, in tokens (-b); the tool's own if left out."
    )


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
        [], description="Numbers of layers to leave out of the model."
    )

    @model_validator(mode="before")
    @classmethod
    def _named_after_type(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or value.get("name"):
            return value
        type_ = value.get("type")
        return {**value, "name": type_.upper()} if isinstance(type_, str) else value


class Gguf(Section):
    """The model as GGUF: the conversion, its imatrix, its quants and their shards."""

    sections = frozenset({"imatrix"})

    outtype: Choice(Outtype) = Field(
        "bf16",
        description="Type of the conversion that all quants are made from; the file is named after "
        "it. `auto`: the 16-bit float type that loses least.",
    )
    imatrix: Annotated[
        Annotated[Imatrix, Tag("<imatrix>")] | Annotated[Literal[False], Tag("<false>")],
        Discriminator(lambda value: "<false>" if value is False else "<imatrix>"),
        BeforeValidator(values.to_imatrix, json_schema_input_type=Imatrix | bool | None),
    ] = Field(
        False,
        description="The importance matrix; `true` or nothing after the key means its defaults. "
        "Left out or false: every quant is static.",
    )
    quants: list[Read(Quant, values.to_quant, str | Quant)] = Field(
        [],
        description="The quants: types, or mappings with the keys below. The conversion's own type "
        "(BF16) among them means the conversion itself: it is kept, split and published.",
    )
    split_max_size: Size | None = Field(
        None,
        description="Make shards of at most this size besides the whole files: a whole number and "
        "M or G (millions or thousands of millions of bytes). What fits into one is linked.",
    )
    metadata: Read(
        dict[str, values.Scalar | list[values.Scalar]], values.to_metadata, dict[str, Any]
    ) = Field(
        {}, description="Header fields to set in the finished files, such as `general.license`."
    )


class Exl2(Section):
    """The model as EXL2, by exllamav2's converter; needs a CUDA GPU."""

    bits: Read(list[float], values.to_bits, float | list[float]) = Field(
        description="Bits per weight, 2 to 8: one directory for each."
    )
    head_bits: Read(int, values.to_head_bits, {"enum": list(values.HEAD_BITS)}) = Field(
        6, description="Bits per weight of the output layer."
    )
    measurement: Text | None = Field(
        None,
        description="A measurement.json that you have, in place of a computed one; no "
        "`measurement_rows` or `measurement_length` beside it.",
    )
    corpus: Text = Field(
        "default", description="exllamav2's own calibration set, or a .parquet text of `corpora`."
    )
    rows: Number(int, 1) = Field(
        100, description="Rows of a corpus for quantizing; exllamav2's own set has its own number."
    )
    length: Number(int, 1) = Field(2048, description="Tokens in a row.")
    measurement_rows: Number(int, 1) = Field(
        16, description="Rows of a corpus for the measurement; the own set has its own number."
    )
    measurement_length: Number(int, 1) = Field(
        2048, description="Tokens in a row of the measurement."
    )
    shard_size: Number(int, 1) = Field(8192, description="Largest file, in MB.")
    rope_scale: Number(float, 0.01) | None = Field(
        None, description="RoPE scaling factor; the model's own if left out."
    )
    rope_alpha: Number(float, 0.01) | None = Field(
        None, description="RoPE alpha (NTK); the model's own if left out."
    )


class Evaluate(Section):
    """KL divergence, perplexity and top-token agreement of every form of the model."""

    corpus: Text = Field("evaluation", description="Name of the evaluation text in `corpora`.")
    context: Number(int, 8) = Field(512, description="Tokens in a chunk.")
    chunks: Number(int, 1) | None = Field(
        None, description="Number of chunks of the text to use; all if left out."
    )


class Publish(Section):
    """Where `snakemake publish` uploads the model's forms, and what its card says."""

    gguf: Repository | None = Field(
        None, description="Repository for the quants, shards and imatrix."
    )
    exl2: Exl2Repository | None = Field(
        None,
        description="Repository for EXL2: one branch for each bits value, or, with `{form}` (5.0bpw) "
        "in its name, one repository for each.",
    )
    safetensors: Repository | None = Field(None, description="Repository for the merge.")
    private: Flag = Field(False, description="Make the repositories private.")
    max_kld: Read(dict[str, float], values.to_max_kld, float | dict[str, float]) = Field(
        {},
        description="Publish only if every form's mean KLD is at most this: a number for all, or a "
        "mapping of forms to numbers, with `*` for the rest.",
    )
    max_file_size: Size = Field(
        "50G", description="A whole file that is larger is published as its shards only."
    )
    license: Text | None = Field(
        None, description="The card's license; left out, it follows from the models merged."
    )
    license_name: Text | None = Field(None, description="Its name, where `license` is `other`.")
    license_link: Text | None = Field(None, description="Where its text is.")
    language: TextList = Field([], description="Languages for the card, such as `en`.")
    tags: TextList = Field([], description="Further tags for the card.")
    quantized_by: Text | None = Field(None, description="Who made the quants, for the card.")
    card_template: Text | None = Field(
        None, description="A jinja2 template that replaces the built-in card."
    )


class Model(Section):
    """One model: a `merge` or a `source`, and the forms that are made of it."""

    sections = frozenset({"gguf", "exl2", "evaluate", "publish"})

    merge: Read(dict[str, Any], values.to_merge, dict[str, Any] | str) | None = Field(
        None,
        description="A mergekit configuration, verbatim, or the name of a file that holds one; "
        "the named documents of a file of mergekit-multi become models of their own.",
    )
    source: Text | None = Field(
        None,
        description="A finished model: a directory (`./x`, `/x`), a hub id (`org/name`, "
        "`org/name@revision`) or an unquantized GGUF file (`./x.gguf`), of which GGUF alone is "
        "made.",
    )
    random_seed: Number(int, 0, 2**32 - 1) = Field(
        0, description="Seed of the merge, for the methods that draw."
    )
    allow_pickle: Flag = Field(
        False, description="Take .bin and .pt weights, which can run code when loaded."
    )
    gguf: Gguf | None = Field(None, description="Make GGUF files.")
    exl2: Exl2 | None = Field(None, description="Make EXL2 directories.")
    evaluate: Evaluate | None = Field(None, description="Measure every form.")
    publish: Publish | None = Field(None, description="Where to publish, and how.")

    # What the header of a GGUF `source` says (lib/formats/gguf_source.py); set when the config is checked.
    _own_gguf: GgufSource | None = PrivateAttr(None)

    @property
    def own_gguf(self) -> GgufSource | None:
        """The GGUF file that is the model's source; None where the source is something else."""
        return self._own_gguf

    @property
    def own_imatrix(self) -> str | None:
        """The user's own importance matrix; None where it is computed or there is none."""
        return self.gguf.imatrix.file if self.gguf and self.gguf.imatrix else None

    @property
    def own_measurement(self) -> str | None:
        """The user's own EXL2 measurement; None where it is computed or there is none."""
        return self.exl2.measurement if self.exl2 else None

    @property
    def conversion(self) -> str | None:
        """The form that all quants are made from, such as BF16; None without a `gguf` section."""
        if self.gguf is None:
            return None
        return self._own_gguf.form if self._own_gguf else self.gguf.outtype.upper()


class Config(Section):
    """A Quantmill configuration: which models there are, and in which forms."""

    sections = frozenset({"llama_cpp", "corpora", "models"})

    llama_cpp: LlamaCpp = Field(default_factory=LlamaCpp, description="Which llama.cpp is used.")
    reclaim: Read(list[Reclaimable], values.to_reclaim, Reclaimable | list[Reclaimable]) = Field(
        [],
        description="Intermediates to delete once nothing needs them: `safetensors` (merges), "
        "`bf16` (conversions). Base logits always are.",
    )
    corpora: Read(dict[str, Corpus], values.to_mapping) = Field(
        {}, description="Texts for calibration and evaluation, by name."
    )
    models: Read(dict[str, Model], values.to_mapping) = Field(
        {}, description="The models, by name."
    )


class Options(Section):
    """What `--config key=value` may say for one run; none of it changes what is stale."""

    model: Words = Field([], description="Only these models: a name, or several with commas.")
    exl2: Choice(Literal["build", "skip"]) = Field(
        "build", description="`skip` leaves out EXL2, for machines without CUDA."
    )
    only: Words = Field([], description="Only these hub references, for `lock`.")
    target: Words = Field(
        [], description="Only these files, rules or models, for `why`, `plan` and `accept`."
    )
    ignore_preflight: Flag = Field(
        False, description="Build even if the preflight finds a problem."
    )
    ignore_disk: Flag = Field(
        False, description="Build even if the plan's peak does not fit the disk."
    )
    yes: Flag = Field(False, description="Delete what `clean_orphans` lists.")

    def models(self) -> list[str] | None:
        """The models to look at; None for all."""
        return self.model or None

    def skipped(self) -> list[str]:
        """The families, by their section of a model, that this run leaves out."""
        return ["exl2"] if self.exl2 == "skip" else []

"""The config as pydantic models: every key with its type, default, limits and description.

The descriptions are the documentation: dev/config_docs.py makes config/schema.json and the tables
of config/README.md from them. A family's section is declared in its own module (lib/stages). How
single values are read is in lib/keys; what concerns several keys at once is checked in checks.py.
"""

from typing import Any, Literal, get_origin

from pydantic import Field, PrivateAttr, create_model

from lib.formats.gguf_source import GgufSource
from lib.formats.merge_references import Reference, merge_references
from lib.formats.moe_references import moe_references
from lib.keys import values
from lib.keys.section import (
    Choice,
    FileSize,
    Flag,
    Number,
    Pattern,
    Read,
    Section,
    Sha256,
    Text,
    TextList,
    Words,
    repository,
    within,
)
from lib.stages.environments import FILES
from lib.stages.evaluation import TaskFile, to_tasks
from lib.stages.family import Family
from lib.stages.registry import FAMILIES
from lib.stages.similarity import Similarity
from lib.stages.studies import Study
from lib.studies.lock import Chosen

Cuda = Literal["auto", "on", "off"]
Reclaimed = Literal["safetensors", "bf16", "quants"]
WITH_SECTIONS = {name: family for name, family in FAMILIES.items() if family.section}
PUBLISHED = {name: family for name, family in FAMILIES.items() if family.repository_says}
Skippable = Literal[tuple(WITH_SECTIONS)]
BY_FORM = [name for name, family in FAMILIES.items() if family.repository_by_form]


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


def to_environments(value: Any) -> dict[str, Any]:
    """{name of an environment: interpreter}. Raises ValueError for a name that is none."""
    found, known = values.to_mapping(value), sorted(file.stem for file in FILES.glob("*.txt"))
    for name in found:
        if name not in known:
            near = values.suggestion(name, known)
            raise ValueError(f"{values.show(name)} is not one of {', '.join(known)}{near}")
    return found


class Corpus(Section):
    """A text for calibration or evaluation: a `path`, a `url` or a `hub` dataset."""

    path: Text | None = Field(
        None, description="A .txt or .parquet file, relative to the working directory."
    )
    url: Text | None = Field(None, description="Where to download it; needs `sha256`.")
    sha256: Sha256 | None = Field(
        None, description="Digest of the file at `url`: 64 hexadecimal digits."
    )
    hub: repository(False, BY_FORM) | None = Field(
        None, description="A dataset on the Hugging Face hub, org/name; needs `file`."
    )
    file: Text | None = Field(None, description="The file within the `hub` dataset.")
    revision: Text | None = Field(
        None, description="Branch, tag or commit of the `hub` dataset; its main branch if left out."
    )

    def origin(self) -> str:
        """The path, file name or URL (without query) that it comes from; it ends in the suffix."""
        return self.path or self.file or (self.url or "").partition("?")[0].partition("#")[0]

    def reference(self) -> str:
        """The hub dataset as org/name or org/name@revision."""
        return f"{self.hub}@{self.revision}" if self.revision else str(self.hub)


class Evaluate(Section):
    """KL divergence, perplexity and top-token agreement of every form of the model."""

    corpus: Text = Field("evaluation", description="Name of the evaluation text in `corpora`.")
    also: TextList = Field([], description="Further texts, on which every form is measured too.")
    context: Number(int, 8) = Field(512, description="Tokens in a chunk.")
    chunks: Number(int, 1) | None = Field(
        None, description="Number of chunks of the text to use; all if left out."
    )
    tasks: Read(dict[str, TaskFile], to_tasks, dict[str, str | TaskFile]) = Field(
        {},
        description="Files of tasks that every GGUF is measured on, by name: a name that is a kind "
        "(`hellaswag`, `winogrande`, `multiple_choice`) and the file, or a mapping with the keys "
        "below.",
    )
    harness: Flag = Field(
        False,
        description="Measure the model's own weights on `tasks` too, by lm-evaluation-harness in a "
        "Python environment of its own.",
    )

    @property
    def texts(self) -> dict[str, str]:
        """{text: what comes before the names of its evaluations, empty or a directory}."""
        return {self.corpus: ""} | {text: f"{text}/" for text in self.also}


_Repositories = create_model(
    "_Repositories",
    __base__=Section,
    **{
        name: (
            repository(name in BY_FORM, BY_FORM) | None,
            Field(None, description=family.repository_says),
        )
        for name, family in PUBLISHED.items()
    },
)


class Sign(Section):
    """Sign what is published."""

    key: Text = Field(
        description="File of your private key, an elliptic curve in PEM without a password. It is "
        "read when something is published, and its path is in no recipe."
    )


class Publish(_Repositories):
    """Where `snakemake publish` uploads the model's forms, and what its card says."""

    private: Flag = Field(False, description="Make the repositories private.")
    max_kld: Read(dict[str, float], values.to_max_kld, float | dict[str, float]) = Field(
        {},
        description="Publish only if every form's mean KLD is at most this: a number for all, or a "
        "mapping of forms to numbers, with `*` for the rest.",
    )
    survivors: Flag = Field(
        False,
        description="Leave out every form that one of its family, no larger, beats: its KLD is "
        "lower by more than two standard errors of the difference.",
    )
    max_file_size: FileSize = Field(
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
    sign: Sign | None = Field(
        None, description="Sign the attestations, and each branch (`model.sig`)."
    )
    card_template: Text | None = Field(
        None, description="A jinja2 template that replaces the built-in card."
    )


class _Origin(Section):
    merge: Read(dict[str, Any], values.to_merge, dict[str, Any] | str) | None = Field(
        None,
        description="A mergekit configuration, verbatim, or the name of a file that holds one; "
        "the named documents of a file of mergekit-multi become models of their own. "
        "`{study: NAME}`: the merge that a study has chosen.",
    )
    moe: Read(dict[str, Any], values.to_merge, dict[str, Any] | str) | None = Field(
        None,
        description="A mixture of experts: a configuration of mergekit-moe, verbatim, or the name "
        "of a file that holds one.",
    )
    source: Text | None = Field(
        None,
        description="A finished model: a directory (`./x`, `/x`), a hub id (`org/name`, "
        "`org/name@revision`) or an unquantized GGUF file (`./x.gguf`), of which GGUF alone is "
        "made.",
    )
    random_seed: Number(int, 0, 2**32 - 1) = Field(
        0,
        description="Seed of the merge, for the methods that draw; of a mixture, for gates and "
        "noise.",
    )
    allow_pickle: Flag = Field(
        False, description="Take .bin and .pt weights, which can run code when loaded."
    )


_Forms = create_model(
    "_Forms",
    __base__=_Origin,
    **{
        name: (family.section | None, Field(None, description=family.section_says))
        for name, family in WITH_SECTIONS.items()
    },
)


class Model(_Forms):
    """One model: a `merge`, a `moe` or a `source`, and the forms that are made of it."""

    sections = frozenset({*WITH_SECTIONS, "evaluate", "publish", "similarity"})

    similarity: Similarity | None = Field(
        None, description="Compare the models of a `merge` by what they changed of their base."
    )
    evaluate: Evaluate | None = Field(None, description="Measure every form.")
    publish: Publish | None = Field(None, description="Where to publish, and how.")

    # What the header of a GGUF `source` says; set when the config is checked.
    _own_gguf: GgufSource | None = PrivateAttr(None)

    @property
    def own_gguf(self) -> GgufSource | None:
        """What the header of its GGUF `source` says; None if the source is no GGUF file."""
        return self._own_gguf

    @property
    def merges(self) -> list[dict[str, Any]]:
        """Its merge, if it is one."""
        return [] if self.merge is None else [self.merge]

    @property
    def is_made(self) -> bool:
        """Whether its weights are made here, by mergekit: a merge, or a mixture of experts."""
        return self.merge is not None or self.moe is not None

    def made_from(self) -> list[Reference]:
        """The references in its merge or mixture; none if it is a source."""
        if self.merge is not None:
            return merge_references(self.merge)
        return moe_references(self.moe) if self.moe is not None else []

    @property
    def has_forms(self) -> bool:
        """Whether it has the section of a family that makes forms of it."""
        return any(family.makes_forms for family in self.families())

    def families(self) -> list[Family]:
        """The families whose section it has, in the order of the registry."""
        return [family for family in WITH_SECTIONS.values() if family.own(self) is not None]

    def parts(self) -> list[str]:
        """The references that it is made from: its source, or all that it names, each once."""
        if not self.is_made:
            return [self.source]
        named = (part for found in self.made_from() for part in found.parts)
        return list(dict.fromkeys(named))

    def references(self) -> list[str]:
        """Models that the sections name, beside `parts`."""
        own = [self.similarity.base] if self.similarity and self.similarity.base else []
        return own + [each for family in self.families() for each in family.references(self)]

    def needs(self) -> list[str]:
        """All that it is made from or with: `parts`, `references`, models with its adapters."""
        adapted = (each for family in self.families() for each in family.adapters_of(self))
        return [*self.parts(), *self.references(), *adapted]

    def corpora(self) -> set[str]:
        """The names of the texts that its sections use."""
        found = {corpus for family in self.families() for corpus in family.corpora(self)}
        return found | (self.evaluate.texts.keys() if self.evaluate else set())

    @property
    def conversion(self) -> str | None:
        """The form that all quants, and base logits, are made from (such as BF16); None if none."""
        if self.gguf is None:
            measured = any(family.by_base_logits for family in self.families())
            return "BF16" if self.evaluate and measured else None
        return self._own_gguf.form if self._own_gguf else self.gguf.outtype.upper()


class Config(Section):
    """A Quantmill configuration: which models there are, and in which forms."""

    sections = frozenset({"llama_cpp", "corpora", "models", "studies"})

    llama_cpp: LlamaCpp = Field(default_factory=LlamaCpp, description="Which llama.cpp is used.")
    environments: Read(dict[str, Text], to_environments) = Field(
        {},
        description="Your own Python interpreters (`DIR/bin/python`) for tools that otherwise get "
        "an environment installed, by its name: `exllamav2`, `exllamav3`, `llmcompressor`, "
        "`lm-eval`, `mlx`.",
    )
    reclaim: Read(list[Choice(Reclaimed)], values.to_list, Reclaimed | list[Reclaimed]) = Field(
        [],
        description="What to delete once nothing needs it: `safetensors` (merges), `bf16` "
        "(conversions), and `quants`, once a store or the hub has them (docs/cold.md). Base logits "
        "always are.",
    )
    store: Choice(Literal["reproducible", "all"]) = Field(
        "reproducible",
        description="What is shared where `QUANTMILL_STORE` names a store (docs/store.md): what "
        "comes out the same each time, or `all`: what does not, too.",
    )
    corpora: Read(dict[str, Corpus], values.to_mapping) = Field(
        {}, description="Texts for calibration and evaluation, by name."
    )
    models: Read(dict[str, Model], values.to_mapping) = Field(
        {}, description="The models, by name."
    )
    studies: Read(dict[str, Study], values.to_mapping) = Field(
        {}, description="Grids of merges that are measured, to choose one of them; by name."
    )

    # Set when the config is read: what `snakemake choose` has written, the models that take it, and
    # those that wait for it, {model: study}.
    _chosen: dict[str, Chosen] = PrivateAttr(default_factory=dict)
    _takes: dict[str, str] = PrivateAttr(default_factory=dict)
    _waiting: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def chosen(self) -> dict[str, Chosen]:
        """{study: its entry in the lock of studies}."""
        return self._chosen

    @property
    def takes(self) -> dict[str, str]:
        """{model: the study that it takes its merge from}."""
        return self._takes

    @property
    def waiting(self) -> dict[str, str]:
        """{model: the study that it is to take its merge from, and that has no winner yet}.

        Models that need such a model are among them (a merge of it, a LoRA adapter of it or against
        it), and studies that merge one.
        """
        return self._waiting

    @property
    def entries(self) -> dict[str, Model | Study]:
        """The models and the studies by name, which no two of them share."""
        return self.models | self.studies


def to_days(value: Any) -> str:
    """A number of days, such as 30d."""
    return _counted(value, "d", "days, such as 30d")


def to_gigabytes(value: Any) -> str:
    """A size, such as 500G."""
    return _counted(value, "G", "a size in gigabytes, such as 500G")


def _counted(value: Any, unit: str, what: str) -> str:
    if not (isinstance(value, str) and value[:-1].isdigit() and value[-1:] == unit):
        raise ValueError(f"{values.show(value)} is not {what}")
    return value


class Options(Section):
    """What `--config key=value` may say for one run; none of it changes what is stale."""

    model: Words = Field([], description="Only these models: a name, or several with commas.")
    skip: Read(list[Choice(Skippable)], values.to_words, list[Skippable] | str) = Field(
        [],
        description="Leave out these families: one, or several with commas. On machines "
        "without CUDA, for instance.",
    )
    only: Words = Field([], description="Only these hub references, for `lock`.")
    target: Words = Field(
        [],
        description="Only these files, rules or models, for `why`, `plan` and `accept`; these "
        "models or forms for `speed`; these files of a repository for `audit`.",
    )
    pick: Text | None = Field(
        None, description="The candidate that `choose` takes, whatever was measured."
    )
    ignore_preflight: Flag = Field(
        False, description="Build even if the preflight finds a problem."
    )
    ignore_disk: Flag = Field(
        False, description="Build even if the plan's peak does not fit the disk."
    )
    end_hung: Number(float, 0.01) | None = Field(
        None, description="End steps that make no progress for so many minutes."
    )
    repo: Text | None = Field(None, description="The repository that `audit` checks: org/name.")
    dir: Text | None = Field(None, description="A directory that `audit` checks, in its place.")
    key: Text | None = Field(
        None, description="File of the public key that must have signed what `audit` checks."
    )
    expect: Text | None = Field(
        None, description="The digest that the release must have, for `audit`."
    )
    rederive: Words = Field(
        [], description="What `audit` makes again to compare it: forms, or `all`."
    )
    check: Flag = Field(False, description="`store` reads every byte of the store.")
    put: Flag = Field(False, description="`store` puts there what is here and is fresh.")
    keep: Pattern("^[0-9]+d$", to_days) | None = Field(
        None, description="`store` prunes what was put more than so many days ago, such as `30d`."
    )
    size: Pattern("^[0-9]+G$", to_gigabytes) | None = Field(
        None, description="`store` prunes the oldest until no more is left, such as `500G`."
    )
    unasked: Flag = Field(False, description="`store` prunes only what this config does not want.")
    yes: Flag = Field(False, description="Delete what `clean_orphans` or `store` lists.")

    def models(self) -> list[str] | None:
        """The names of the models that the run is about; None for all."""
        return self.model or None


def section_at(model: type[Section], path: tuple[Any, ...]) -> type[Section]:
    """The class of the section at a key path below `model`.

    A path also has the names of entries (of `models`, say) and numbers in lists: they are skipped.
    """
    is_name = False
    for key in path:
        field = None if is_name else model.model_fields.get(key)
        found = within(field.annotation) if field else None
        is_name = found is not None and get_origin(field.annotation) is dict
        model = found or model
    return model

"""Mixes: the best type for each tensor within a size, found by measuring what each tensor loses."""

import math
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lib.formats.memory import shape_of
from lib.formats.quants import PURE
from lib.keys.section import Choice, Number, Read, Section, Text
from lib.keys.values import show, suggestion, to_list, to_tensor_type
from lib.mixes import candidates, targets
from lib.mixes.sharing import copies
from lib.record.artifact import Artifact
from lib.record.tools import package_version
from lib.stages import quantize
from lib.stages.convert import QUANTIZED_OUTTYPES, model_of
from lib.stages.evaluation import EvaluateStage
from lib.stages.quantize import COSTS, QuantizeStage, QuantType
from lib.stages.stage import Cost, Counted, Memory, Size, Sizing, Stage, Time

TARGETS = ("target_size", "target_bpw", "max_kld", "memory")
BELONG_TO_MEMORY = ("context", "cache_type")
UNITS = {"": 1, "M": 10**6, "G": 10**9, "MB": 10**6, "GB": 10**9}


def to_bytes(value: Any) -> int:
    """Bytes of a size such as 5G, 4.7G or 4700M (10**9 and 10**6 bytes), or of a whole number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]?B?)", str(value), re.IGNORECASE)
    unit = found and UNITS.get(found[2].upper())
    size = int(float(found[1]) * unit) if unit else 0
    if isinstance(value, bool) or size <= 0:
        raise ValueError(f"{show(value)} is not a size, such as 5G, 4.7G or 4700M")
    return size


def to_memory(value: Any) -> float:
    """GB (of 2**30 bytes) of a memory such as 24GB or 24."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:GB?|GiB)?", str(value), re.IGNORECASE)
    if isinstance(value, bool) or not found or not float(found[1]):
        raise ValueError(f"{show(value)} is not an amount of memory, such as 24GB")
    return float(found[1])


def to_types(value: Any) -> list[str]:
    """Tensor types that a mix can be made of, each once."""
    found = []
    for entry in to_list(value):
        kind = to_tensor_type(entry)
        if kind not in PURE:
            near = suggestion(kind, PURE)
            raise ValueError(f"{kind} is no type that llama-quantize makes a whole file of{near}")
        if kind in found:
            raise ValueError(f"{kind} is there twice")
        found.append(kind)
    if len(found) < 2:
        raise ValueError("a mix needs at least two types to choose from")
    return found


class Mixes(Section):
    """How mixes are found: what is measured of the model, once for all its targets."""

    corpus: Text = Field(
        "calibration", description="Name of the text whose first half the measurements read."
    )
    validation: Text | None = Field(
        None,
        description="Name of the text that `max_kld` is measured on; left out, the second half of "
        "`corpus`.",
    )
    chunks: Number(int, 1) = Field(8, description="Chunks of 512 tokens of each text to use.")
    types: Read(list[str], to_types, list[str]) = Field(
        list(candidates.DEFAULT), description="Tensor types to choose from."
    )


class Target(Section):
    """What a mix is to meet; one of the first four keys."""

    target_size: Read(int, to_bytes, str | int) | None = Field(
        None,
        description="In place of a type: the best mix whose file has at most so many bytes, such "
        "as `4.7G` or `4700M`.",
    )
    target_bpw: Number(float, 0.1, 32) | None = Field(
        None, description="The same, by the file's bits a weight."
    )
    max_kld: Number(float, 1e-6) | None = Field(
        None,
        description="The smallest mix whose KLD, measured on `mixes.validation`, is at most this.",
    )
    memory: Read(float, to_memory, str | float) | None = Field(
        None,
        description="The best mix that runs in so much memory, such as `24GB`: with its cache, its "
        "buffers, and 1 GB that stays free.",
    )
    context: Number(int, 256) | None = Field(
        None, description="Tokens of the cache in `memory`; left out, 16384, or what it can."
    )
    cache_type: Choice(Literal[targets.CACHE_TYPES]) = Field(
        "f16", description="Type of the cache in `memory` (--cache-type-k and -v)."
    )

    @property
    def target(self) -> dict[str, Any]:
        """The target with what belongs to it, as a recipe has it; empty for a quant of a type."""
        found = self.model_dump(include={*TARGETS}, exclude_none=True)
        if "memory" in found:
            found |= self.model_dump(include={*BELONG_TO_MEMORY}, exclude_defaults=True)
        return found


class Quant(Target, quantize.Quant):
    """One quant: a type of llama-quantize and what deviates from its mixture, or a target.

    In the list a type alone, such as `Q4_K_M`, stands for `{type: Q4_K_M}`.
    """

    type: QuantType | None = Field(
        None,
        description="A type that llama-quantize lists; `Q3_K`, `Q4_K` and `Q5_K` mean their `_M`. "
        "One of it, `target_size`, `target_bpw`, `max_kld` and `memory`.",
    )


class SensitivityStage(Stage):
    """Measure what each tensor loses in each type, once for all mixes of a model."""

    rule = "sensitivity"
    column = "mixes"
    is_long = True
    # Up to 8 measurements side by side; the parts of the model are mapped, and shared.
    memory = Memory(8000, 1.1, 0, 1.1)
    time = Time(30, 5)
    output = 2.5
    scratch = 2.3
    tokens = 1_100_000  # 270 measurements of 8 chunks of 512
    bytes_per_weight = 2.0
    counted = Counted(r"sensitivity: \w+ .*?(\d+) of", r"sensitivity: .* of (\d+)")
    gpu = "whole"
    fixed_threads = None
    takes_all = True
    priority = 1
    typical = 100_000

    def gpu_copies(self, size: int) -> int:
        """Several of a small model."""
        return copies(size)

    def cost_of(self, artifact: Artifact) -> Cost:
        """A quantization to each type; the measurements are counted by their tokens."""
        names = (PURE[kind] for kind in artifact.options["types"])
        return Cost(10, sum(_cost_of(name) for name in names))


class MixStage(Stage):
    """Choose the types of a mix."""

    rule = "mix"
    column = "mixes"
    memory = Memory(1500)
    cost = Cost(2, 0)
    typical = 10_000

    def impossible(self, artifact: Artifact, sizes: Sizing) -> str | None:
        """Why no mix meets the target, if that is known already."""
        facts = quantize.material(artifact, sizes)
        if facts is None or not facts[0]:
            return None
        allowed = _allowed(artifact, sizes)
        tensors, shape, header, bits = facts
        found = candidates.candidates(tensors, shape, _types_of(artifact))
        kept = (
            candidates.padded(dims, bits.get(name, 32.0))
            for name, dims in tensors.items()
            if name not in found
        )
        least = header + candidates.RESERVE + sum(kept) + candidates.smallest(found)
        wrong = allowed is not None and targets.impossible(artifact.options, allowed, least)
        return f"{artifact.path}: {wrong}" if wrong else None


class MixByKldStage(EvaluateStage):
    """Find the smallest mix of a measured KLD, by trying."""

    rule = "mix_by_kld"
    column = "mixes"
    measures = False
    is_long = True
    tokens = (targets.TRIES + 1) * 8 * 512
    output = 1.0
    scratch = 1.0
    takes_all = True
    counted = Counted(r"mix_by_kld: try (\d+)", r"mix_by_kld: try \d+ of (\d+)")
    cost = Cost(5, 2 * 120)
    typical = 10_000


class QuantizeMixStage(QuantizeStage):
    """Quantize the unquantized GGUF by a mix."""

    rule = "quantize_mix"
    reads = ("gguf",)

    def cost_of(self, artifact: Artifact) -> Cost:
        """As the mean of the types: which it will have is not known."""
        return Cost(1, 120)

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """What its target allows; of `max_kld`, as with 4.5 bits a weight."""
        mix = artifact.inputs["mix"]
        allowed = _allowed(mix, sizes)
        conversion = sizes.now(artifact.inputs["gguf"])
        if allowed is None:
            return Size(round(conversion.bytes * 4.5 / 16), "guess")
        return Size(min(allowed, round(conversion.bytes * 8.5 / 16)), "tensors")

    def fallbacks(self, artifact: Artifact, sizes: Sizing) -> None:
        """None: a mix has only types that fit."""


STAGES = (SensitivityStage(), MixStage(), MixByKldStage(), QuantizeMixStage())


def check(checks: Any, at: tuple, quant: Quant, model: Any) -> None:
    """Report mistakes in a quant with a target, at the key path `at` (lib/config/checks.Checks)."""
    given = [key for key in ("type", *TARGETS) if getattr(quant, key) is not None]
    if len(given) > 1:
        checks.add((*at, given[1]), f"one of {' and '.join(given)}, not both")
    allowed = {"name", "imatrix", *TARGETS}
    if quant.memory is not None:
        allowed |= {*BELONG_TO_MEMORY}
    for key in sorted(quant.model_fields_set - allowed - {"type"}):
        if key in BELONG_TO_MEMORY:
            checks.add((*at, key), "is for `memory` alone")
        else:
            checks.add((*at, key), f"has no effect together with {given[-1]}: the mix decides")
    if not model.gguf.imatrix or not quant.imatrix:
        checks.add((*at, given[-1]), "a mix needs the model's importance matrix (gguf.imatrix)")
    own, outtype = model.own_gguf, model.gguf.outtype
    if own.quantized if own else outtype in QUANTIZED_OUTTYPES:
        checks.add((*at, given[-1]), "a mix is made of an unquantized model")


def check_section(checks: Any, at: tuple, model: Any) -> None:
    """Report mistakes in `mixes` of a model, at the key path `at`."""
    section = model.gguf.mixes
    if not model.gguf.has_targets:
        if section.model_fields_set:
            checks.add(at, "has no effect: no quant has a target (target_size, target_bpw …)")
        return
    measured = set(model.evaluate.texts) if model.evaluate else set()
    texts = {"corpus": section.corpus, "validation": section.validation}
    for key, text in texts.items():
        if text is None:
            continue
        checks.uses_corpus((*at, key), text)
        if text in measured:
            checks.add((*at, key), f"{text} is what the forms are measured on: take another text")
    if section.validation == section.corpus:
        checks.add((*at, "validation"), "is corpus: leave it out to use that text's second half")


def corpora(gguf: Any) -> set[str]:
    """The names of the texts that a model's mixes use."""
    found = {gguf.mixes.corpus} if gguf.has_targets else set()
    if any(quant.max_kld is not None for quant in gguf.quants) and gguf.mixes.validation:
        found.add(gguf.mixes.validation)
    return found


def sensitivity(
    shared: Any, name: str, section: Mixes, conversion: Artifact, matrix: Artifact
) -> Artifact:
    """Declare what is measured of a model for its mixes.

    section: the model's `mixes`. conversion: the unquantized GGUF. matrix: its importance matrix.
    """
    by = shared.by_llama_cpp()
    return Artifact(
        f"results/{name}/sensitivity.json",
        "sensitivity",
        name,
        section.model_dump(include={"corpus", "chunks", "types"}),
        inputs={"gguf": conversion, "imatrix": matrix, "corpus": shared.corpus(section.corpus)},
        tools=by["tools"] | {"gguf": package_version("gguf")},
        uses=by["uses"],
    )


def mix(
    shared: Any,
    name: str,
    quant: Quant,
    section: Mixes,
    conversion: Artifact,
    matrix: Artifact,
    measured: Artifact,
) -> tuple[Artifact, Artifact]:
    """Declare a mix, and the quant that is made by it.

    measured: the model's sensitivity. The others are those of `sensitivity`.
    """
    path, inputs = f"results/{name}/mixes/{quant.name}.txt", {"gguf": conversion}
    by, solver = shared.by_llama_cpp(), {"scipy": package_version("scipy")}
    if quant.max_kld is None:
        found = Artifact(
            path,
            "mix",
            name,
            quant.target,
            inputs=inputs | {"sensitivity": measured},
            tools=solver,
        )
    else:
        text = section.validation or section.corpus
        options = {"max_kld": quant.max_kld, "chunks": section.chunks, "corpus": text}
        found = Artifact(
            path,
            "mix_by_kld",
            name,
            options | ({} if section.validation else {"half": True}),
            inputs=inputs
            | {"sensitivity": measured, "imatrix": matrix, "corpus": shared.corpus(text)},
            tools=by["tools"] | solver,
            uses=by["uses"],
        )
    made = Artifact(
        f"results/{name}/gguf/{name}-{quant.name}.gguf",
        "quantize_mix",
        name,
        {},
        inputs=inputs | {"imatrix": matrix, "mix": found},
        **by,
    )
    return found, made


def _types_of(artifact: Artifact) -> list[str]:
    return artifact.inputs["sensitivity"].options["types"]


def _allowed(mix: Artifact, sizes: Sizing) -> int | None:
    """The most bytes of the file of a mix; None if that is not known before it is measured."""
    tensors = sizes.tensors(model_of(mix.inputs["gguf"]))
    if "max_kld" in mix.options or not tensors:
        return mix.options.get("target_size")
    parameters = sum(math.prod(dims) for dims in tensors.values())
    shape = None
    if "memory" in mix.options:
        model = model_of(mix.inputs["gguf"])
        weights = sizes.weights(model)
        shape = shape_of(Path(model.file)) if model.file else weights and weights.context
        if shape is None:
            return None
    return targets.budget(mix.options, parameters, shape)


def _cost_of(type_: str) -> float:
    return next(cost for prefix, cost in COSTS.items() if type_.startswith(prefix))

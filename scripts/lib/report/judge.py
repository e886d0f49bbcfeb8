"""Judge the forms of a model, for the report and the model card: which is best for whom.

`read` takes forms.json, which the planner writes:

    {"model": "Demo", "parameters": 4200000, "reference": "llama.cpp b10605",
     "trained": 131072, "corpus": "evaluation", "context": 512,
     "forms": [{"form": "Q4_K_M", "family": "gguf", "quantized": true,
                "file": "results/Demo/gguf/Demo-Q4_K_M.gguf", "bytes": 2900000, "sha256": "9f86…",
                "type": "Q4_K_M", "imatrix": true,
                "preset": true, "mix": null,
                "fallbacks": {"count": 180, "tensors": 272, "types": ["q5_0"], "block": 256},
                "memory": {"4096": 3400000, "16384": 5000000},
                "evaluation": "results/Demo/evaluation/Q4_K_M.json",
                "also": {"code": "results/Demo/evaluation/code/Q4_K_M.json"},
                "tasks": {"arc": "results/Demo/evaluation/tasks/arc/Q4_K_M.json"}}, ...],
     "harness": {"arc": "results/Demo/harness/arc.json"}}

`family` is one of lib/cards/registry.py. `preset`: whether it is as llama-quantize makes it of a
type, without further options. `mix` is {file, target, found, corpus, types} of a form whose
tensors' types were searched for (see `Mix`). `evaluation` is null if nothing was measured.
`fallbacks` (see lib/formats/fallbacks.py) is null if the tool gave every tensor its type. `memory`
is what it takes with a context of so many tokens (lib/formats/memory.py); `trained` the model's
longest. A form may have its own `parameters`. Other keys may be left out. Sizes are in bytes, KLD
in nats a token, agreement is a fraction; an error is one standard error.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple

from lib.errors import UserError
from lib.formats.divergence import ENOUGH
from lib.formats.fallbacks import Fallbacks
from lib.formats.json_file import read_json
from lib.formats.memory import room
from lib.report.looks import Look, Looks

MEMORY_SIZES = (8, 12, 16, 24, 48, 80)
SMALL_BITS = 4.0
LOSSLESS_KLD = 0.01
LOSSLESS_RATIO = 5.0
SURE = 2.0
# A KLD that is less than this share of the largest one would only stretch the axis of a plot.
NEGLIGIBLE = 1e-7
TABLE_CONTEXT = 16384  # tokens, for which the report's tables have the memory


@dataclass(frozen=True)
class Mix:
    """How the type of each tensor of a form was found.

    file: its path, of lines NAME=TYPE. target, found: options and notes of its recipe, as
    scripts/mix.py and mix_by_kld.py take and leave them. corpus: the name of the text that tensors
    were measured on; None if that is not known any more. types: {tensor: type}.
    """

    file: str
    target: dict[str, Any]
    found: dict[str, Any]
    corpus: str | None
    types: dict[str, str]


class Figure(NamedTuple):
    """A measured figure and its standard error; both are None if nothing was measured."""

    value: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Form:
    """One form of a model: a quant, or the unquantized conversion."""

    name: str
    look: Look
    quantized: bool
    file: str
    bytes: int
    sha256: str | None = None
    parameters: int | None = None
    type: str | None = None
    imatrix: bool = False
    fallbacks: Fallbacks | None = None
    preset: bool = False
    mix: Mix | None = None
    # {context in tokens: bytes of memory}; empty if it is not known.
    memory: dict[int, int] = field(default_factory=dict)
    kld: Figure = Figure()
    kld_p99: float | None = None
    kld_p999: float | None = None
    kld_max: float | None = None
    # The mean KLD of each chunk of the text.
    per_chunk: tuple[float, ...] = ()
    # The KLD of the unquantized model by the engine that measured it, if that is not llama.cpp.
    floor: Figure = Figure()
    # Tokens of the text that the unquantized model finds the most probable and this one does not,
    # and the other way round.
    lost: Figure = Figure()
    gained: Figure = Figure()
    perplexity: Figure = Figure()
    same_top: Figure = Figure()
    # Its KLD on further texts.
    also: dict[str, Figure] = field(default_factory=dict)
    # The share that it solves of the tasks of each file.
    tasks: dict[str, Figure] = field(default_factory=dict)
    # {(text, calibration text): the share of the first's paragraphs that are in the second}
    shared: dict[tuple[str, str], float] = field(default_factory=dict)
    # (engine, corpus, context, chunks) of the evaluation; None where nothing was measured.
    conditions: tuple[str, str, int | None, int | None] | None = None

    @property
    def bits_per_weight(self) -> float | None:
        """File size in bits over the model's parameters."""
        return self.bytes * 8 / self.parameters if self.parameters else None

    @property
    def is_small(self) -> bool:
        """Whether it has SMALL_BITS bits per weight or less."""
        return self.bits_per_weight is not None and self.bits_per_weight <= SMALL_BITS

    @property
    def family(self) -> str:
        """The name of its family."""
        return self.look.name

    @property
    def marker(self) -> str:
        """The class of its marker in the plot: its family's name, or `unquantized`."""
        return self.family if self.quantized else "unquantized"

    @property
    def loss(self) -> float | None:
        """KLD for comparisons: the unquantized model against itself can be slightly negative."""
        return None if self.kld.value is None else max(self.kld.value, 0.0)


class Beside(NamedTuple):
    """A file that is loaded beside a form.

    what: "mmproj F16", "mtp Q8_0", "lora NAME". file: its path.
    """

    what: str
    file: str
    bytes: int


class ModelForms(NamedTuple):
    """The facts on one model in forms.json.

    reference: the engine, with its version. trained: its longest context, in tokens. harness: what
    the model's own weights solve of tasks. beside: files that are no forms.
    """

    name: str
    parameters: int | None
    reference: str
    forms: list[Form]
    trained: int | None = None
    harness: dict[str, Figure] = {}
    beside: tuple[Beside, ...] = ()

    @property
    def shared(self) -> dict[tuple[str, str], float]:
        """{(text, calibration text): the share of the first's paragraphs that are in the second}"""
        return {pair: share for form in self.forms for pair, share in form.shared.items()}


class Rival(NamedTuple):
    """The best form that is no larger than another. difference: the other's KLD less its KLD."""

    form: Form
    difference: Figure

    @property
    def beats(self) -> bool:
        """Whether its KLD is lower by more than SURE standard errors of the difference."""
        value, error = self.difference
        return error is not None and value > SURE * error


@dataclass(frozen=True)
class Choice:
    """The form that a rule chose.

    title: the rule's name. why: the rule in words. also: names of other rules that chose it too.
    """

    title: str
    form: Form
    why: str
    also: list[str] = field(default_factory=list)


def read(path: Path, looks: Looks) -> ModelForms:
    """Read forms.json, and each evaluation that it names.

    looks: how families are shown. Raises UserError if a file cannot be read or is not as described
    above.
    """
    document = _read(path)
    try:
        forms = [form_of(entry, document, path, looks) for entry in document["forms"]]
        return ModelForms(
            name=str(document["model"]),
            parameters=document.get("parameters"),
            reference=str(document.get("reference") or "llama.cpp"),
            forms=sorted(forms, key=lambda form: (form.bytes, form.name)),
            trained=document.get("trained"),
            harness=_scores(document.get("harness")),
            beside=tuple(Beside(**entry) for entry in document.get("beside") or []),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a list of forms ({error!r})") from None


def _read(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: is not a JSON object")
    return document


def form_of(entry: dict[str, Any], document: dict[str, Any], path: Path, looks: Looks) -> Form:
    """A form, from its entry in the document that forms.json is; its evaluation is read.

    path: where the document is from, for messages. Raises UserError.
    """
    name = str(entry["form"])
    if looks and entry["family"] not in looks:
        raise UserError(
            f"{path}: {name}: family is {entry['family']!r}, not one of {', '.join(looks)}"
        )
    fallbacks, source = entry.get("fallbacks"), entry.get("evaluation")
    measured = {} if source is None else _read(Path(source))
    places = entry.get("also") or {}
    further = {text: _read(Path(place)) for text, place in places.items()}
    texts = [(str(measured.get("corpus")), measured), *further.items()]
    return Form(
        name=name,
        look=looks[entry["family"]],
        quantized=bool(entry.get("quantized", True)),
        file=str(entry["file"]),
        bytes=int(entry["bytes"]),
        sha256=entry.get("sha256"),
        parameters=entry.get("parameters") or document.get("parameters"),
        type=entry.get("type"),
        imatrix=bool(entry.get("imatrix")),
        memory={int(tokens): size for tokens, size in (entry.get("memory") or {}).items()},
        fallbacks=fallbacks and Fallbacks(**{**fallbacks, "types": tuple(fallbacks["types"])}),
        preset=bool(entry.get("preset")),
        mix=Mix(**entry["mix"]) if entry.get("mix") else None,
        kld=_figure(source, "kld", measured),
        floor=Figure(
            *(
                _number(source, f"floor.{key}", (measured.get("floor") or {}).get(key))
                for key in ("mean", "error")
            )
        ),
        **{
            f"kld_{name}": _number(source, f"kld.{key}", (measured.get("kld") or {}).get(key))
            for name, key in (("p99", "p99"), ("p999", "p99_9"), ("max", "max"))
        },
        per_chunk=tuple((measured.get("per_chunk") or {}).get("kld") or ()),
        lost=_flips(source, "lost", measured),
        gained=_flips(source, "gained", measured),
        perplexity=_figure(source, "perplexity", measured),
        same_top=_figure(source, "same_top", measured),
        also={text: _figure(places[text], "kld", found) for text, found in further.items()},
        tasks=_scores(entry.get("tasks")),
        shared={
            (text, other): float(share)
            for text, found in texts
            for other, share in (found.get("shared") or {}).items()
        },
        conditions=None
        if source is None
        else (
            str(measured.get("engine") or document.get("reference") or "llama.cpp"),
            str(measured.get("corpus") or document.get("corpus") or "evaluation"),
            measured.get("context") or document.get("context"),
            measured.get("chunks"),
        ),
    )


def _figure(source: str | None, key: str, measured: dict[str, Any]) -> Figure:
    found = measured.get(key) or {}
    return Figure(
        _number(source, f"{key}.mean", found.get("mean")),
        _number(source, f"{key}.error", found.get("error")),
    )


def _scores(places: dict[str, str] | None) -> dict[str, Figure]:
    """{task: the share that is solved of it}, from {task: path}."""
    read = {task: (place, _read(Path(place))) for task, place in (places or {}).items()}
    return {
        task: Figure(*(_number(place, key, found.get(key)) for key in ("score", "error")))
        for task, (place, found) in read.items()
    }


def _flips(source: str | None, way: str, measured: dict[str, Any]) -> Figure:
    found = measured.get("flips") or {}
    keys = (way, f"{way}_error")
    return Figure(*(_number(source, f"flips.{key}", found.get(key)) for key in keys))


def _number(source: str | None, key: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{source}: {key} is {value!r}, not a finite number; measure it again")
    return float(value)


def charted(forms: list[Form]) -> list[Form]:
    """The forms that stand at their KLD in a plot; the other measured ones are too near to 0.

    The unquantized model is the reference: what it shows against itself is noise.
    """
    most = max((form.loss or 0.0 for form in forms), default=0.0)
    return [form for form in forms if form.quantized and (form.loss or 0.0) > most * NEGLIGIBLE]


def pareto_front(forms: list[Form]) -> list[Form]:
    """The measured forms for which no other form is both smaller and of lower KLD, by size.

    A form that is equal in one and better in the other also counts as better. Forms that are equal
    in both stay together on the front.
    """

    def beats(other: Form, form: Form) -> bool:
        return (
            other.bytes <= form.bytes
            and other.loss <= form.loss
            and (other.bytes, other.loss) != (form.bytes, form.loss)
        )

    measured = [form for form in forms if form.loss is not None]
    front = [form for form in measured if not any(beats(other, form) for other in measured)]
    return sorted(front, key=lambda form: (form.bytes, form.name))


def difference(form: Form, other: Form) -> Figure:
    """The KLD of `form` less that of `other`, and the error of that.

    Both were measured on the same tokens, so the error is that of the differences of their chunks,
    which is far smaller than the errors of the two. It is None of fewer than ENOUGH chunks. Forms
    that were not measured on the same text have no difference.
    """
    if (form.conditions or ())[1:] != (other.conditions or ())[1:]:
        return Figure()
    value, count = form.kld.value - other.kld.value, len(form.per_chunk)
    if count < ENOUGH or count != len(other.per_chunk):
        return Figure(value)
    parts = [one - two for one, two in zip(form.per_chunk, other.per_chunk, strict=True)]
    return Figure(value, stdev(parts) / math.sqrt(count))


def rivals(forms: list[Form]) -> dict[str, Rival]:
    """{form: the form of the lowest KLD that is no larger}, for measured forms that have one."""
    front, found = pareto_front(forms), {}
    for form in forms:
        smaller = [f for f in front if f.bytes <= form.bytes and f.name != form.name]
        if form.loss is not None and smaller:
            best = min(smaller, key=_by_loss)
            found[form.name] = Rival(best, difference(form, best))
    return found


def best_preset(mix: Form, forms: list[Form]) -> Rival | None:
    """The best preset that is no larger than a mix, measured as it was; None if there is none."""
    same = [
        form
        for form in forms
        if form.preset
        and form.loss is not None
        and form.bytes <= mix.bytes
        # The engine's version may differ, the tokens may not.
        and (form.conditions or ())[1:] == (mix.conditions or ())[1:]
    ]
    if mix.loss is None or not same:
        return None
    best = min(same, key=_by_loss)
    return Rival(best, difference(mix, best))


def worst_text(form: Form) -> str | None:
    """The text on which its KLD is the highest; None if it was measured on one alone, or is 0."""
    if form.conditions is None or not form.also or not form.loss:
        return None
    measured = {form.conditions[1]: form.kld, **form.also}
    return max(measured, key=lambda text: measured[text].value)


def survivors(forms: list[Form]) -> list[Form]:
    """The forms that no smaller one beats; those that were not measured are among them."""
    found = rivals(forms)
    return [form for form in forms if form.name not in found or not found[form.name].beats]


def smallest_good(forms: list[Form]) -> Form | None:
    """The quantized form with the lowest KLD at SMALL_BITS or less; else the smallest measured."""
    measured = [form for form in forms if form.quantized and form.loss is not None]
    if small := [form for form in measured if form.is_small]:
        return min(small, key=_by_loss)
    return min(measured, key=lambda form: (form.bytes, form.loss, form.name), default=None)


def balanced(forms: list[Form]) -> Form | None:
    """The knee of the quantized forms' Pareto front.

    That is the form furthest below the straight line between the front's two ends, size against
    log KLD. If the front has no knee, it is the smallest form; None if nothing was measured.
    """
    front = [form for form in pareto_front([f for f in forms if f.quantized]) if form.loss > 0]
    if not front:
        return None
    first, last = front[0], front[-1]
    if first.bytes == last.bytes:
        return first
    slope = (math.log(last.loss) - math.log(first.loss)) / (last.bytes - first.bytes)

    def depth(form: Form) -> float:
        return math.log(first.loss) + slope * (form.bytes - first.bytes) - math.log(form.loss)

    # Rounded: on a front of points on one line, the last bit of a logarithm must not decide.
    return max(front, key=lambda form: (round(depth(form), 9), -form.bytes))


def nearly_lossless(forms: list[Form]) -> Form | None:
    """The smallest quantized form with a low KLD; None if there is none.

    Low: at most LOSSLESS_KLD, and at most LOSSLESS_RATIO times the lowest of the quantized forms.
    """
    measured = [form for form in forms if form.quantized and form.loss is not None]
    lowest = min((form.loss for form in measured), default=0)
    limit = min(LOSSLESS_KLD, LOSSLESS_RATIO * lowest)
    good = [form for form in measured if form.loss <= limit]
    return min(good, key=lambda form: (form.bytes, form.loss, form.name), default=None)


def choices(forms: list[Form]) -> list[Choice]:
    """Up to three answers to the question which form to take: small, balanced, nearly lossless.

    A form that is the answer of several rules is given once, with the other titles in `also`.
    """
    small = smallest_good(forms)
    found = [
        (
            "Small",
            small,
            f"The lowest KLD at {SMALL_BITS:g} bits per weight or less"
            if small and small.is_small
            else "The smallest that was measured",
        ),
        ("Balanced", balanced(forms), "Where a larger file begins to buy less"),
        ("Nearly lossless", nearly_lossless(forms), "The smallest that hardly differs"),
    ]
    answers: dict[str, Choice] = {}
    for title, form, why in found:
        if form and form.name in answers:
            answers[form.name].also.append(title)
        elif form:
            answers[form.name] = Choice(title, form, why)
    return list(answers.values())


def needed(form: Form, context: int | None) -> float:
    """Bytes of memory that a form takes with a context of so many tokens.

    Where that is not known, it is the file and a tenth more.
    """
    return form.memory.get(context, form.bytes * 1.1)


def contexts_of(form: Form, trained: int | None) -> list[int]:
    """The contexts for which a form's memory is known, in tokens, as far as the model was trained.

    trained: the model's longest context; None if it is not known.
    """
    return [context for context in form.memory if trained is None or context <= trained]


def recommend(forms: list[Form], memory: int, context: int | None = None) -> Form | None:
    """The form of the lowest KLD that fits into `memory` GB; of equals, the smaller one.

    If none that fits was measured, it is the largest that fits. None if nothing fits.
    """
    fitting = [form for form in forms if needed(form, context) <= room(memory)]
    measured = [form for form in fitting if form.loss is not None]
    if measured:
        return min(measured, key=_by_loss)
    return min(fitting, key=lambda form: (-form.bytes, form.name), default=None)


class Fitting(NamedTuple):
    """Which form to take, by memory and by context.

    contexts: the columns, each a list of contexts of which all answers are the same. rows: for
    each list of sizes of memory in GB of which all answers are the same, a form or None a column.
    """

    contexts: list[list[int]]
    rows: list[tuple[list[int], list[Form | None]]]


def by_memory(forms: list[Form], trained: int | None) -> Fitting:
    """The best of a family's forms for the usual sizes of memory and contexts.

    trained: the model's longest context, in tokens. Where no memory is known, the contexts are one
    empty list.
    """
    contexts = sorted({context for form in forms for context in contexts_of(form, trained)})
    answers = {
        context: [recommend(forms, memory, context) for memory in MEMORY_SIZES]
        for context in contexts or [None]
    }
    columns = _merged((context, picks) for context, picks in answers.items())
    rows = _merged(
        (memory, [picks[index] for _, picks in columns])
        for index, memory in enumerate(MEMORY_SIZES)
    )
    return Fitting([list(filter(None, found)) for found, _ in columns], rows)


def longest_context(forms: list[Form], trained: int | None) -> int | None:
    """The longest context, in tokens, for which the memory of forms is known; None if none is."""
    return max((c for form in forms for c in contexts_of(form, trained)), default=None)


def all_fit(forms: list[Form], trained: int | None) -> bool:
    """Whether every form fits into the least of the usual sizes of memory, with longest_context."""
    longest = longest_context(forms, trained)
    return all(needed(form, longest) <= room(MEMORY_SIZES[0]) for form in forms)


def _merged(entries: Iterable[tuple[Any, list]]) -> list[tuple[list, list]]:
    """The entries, (key, value), with neighbours of the same value made one: (keys, value)."""
    groups = itertools.groupby(entries, key=lambda entry: entry[1])
    return [([key for key, _ in group], value) for value, group in groups]


def memory_text(sizes: list[int]) -> str:
    """The sizes of a row of `by_memory` as text: 8 GB; 12 to 24 GB; 48 GB and more."""
    if sizes[-1] == MEMORY_SIZES[-1]:
        return f"{sizes[0]} GB and more"
    return f"{sizes[0]} to {sizes[-1]} GB" if len(sizes) > 1 else f"{sizes[0]} GB"


def context_text(contexts: list[int]) -> str:
    """The contexts of a column of `by_memory` as text: 4k; 16k to 128k; empty if there are none."""
    ends = dict.fromkeys(contexts[:1] + contexts[-1:])
    return " to ".join(f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in ends)


def twin_lines(forms: list[Form]) -> list[str]:
    """A sentence, without full stop, for each group of forms that are byte for byte the same."""
    groups: dict[str, list[str]] = {}
    for form in forms:
        if form.sha256:
            groups.setdefault(form.sha256, []).append(form.name)
    return [
        f"{', '.join(names[:-1])} and {names[-1]} are the same file, byte for byte"
        for names in groups.values()
        if len(names) > 1
    ]


def _by_loss(form: Form) -> tuple[float, int, str]:
    return form.loss, form.bytes, form.name

"""Mixes in reports and cards: what was looked for, what was found, and whether it was worth it."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lib.formats.divergence import ENOUGH
from lib.formats.quants import TENSOR_BITS
from lib.mixes.targets import context_of
from lib.report import judge
from lib.report.figures import decimal, places, size_text
from lib.report.judge import Figure, Form
from lib.units import human

LIGHTEST, DARKEST = 2.0, 8.5  # bits a weight, at the ends of the scale of colours

_IN_LAYER = re.compile(r"blk\.(\d+)\.(.+?)(?:\.weight)?")


def target_text(target: Mapping[str, Any], trained: int | None) -> str:
    """What a mix was to meet, in words. target: the options of its recipe.

    trained: the model's longest context, in tokens.
    """
    if "target_size" in target:
        return f"at most {human(target['target_size'])}"
    if "target_bpw" in target:
        return f"at most {target['target_bpw']:g} bits a weight"
    if "max_kld" in target:
        half = ", its second half" if target.get("half") else ""
        return (
            f"the smallest with a KLD of at most {target['max_kld']:g} on {target['corpus']}{half}"
        )
    context = context_of(target, trained)
    cache = target.get("cache_type", "f16")
    return f"fits {target['memory']:g} GB with {context:,} tokens of {cache} cache"


def verdict(form: Form, forms: list[Form]) -> str:
    """Whether a mix is better than the best preset that is no larger: a sentence without subject.

    forms: all those of its model.
    """
    if form.loss is None:
        return "was not measured, so whether a preset is better is not known"
    rival = judge.best_preset(form, forms)
    if rival is None:
        text = "has nothing to be compared with: no preset that is no larger was built and measured"
        if other := form.mix.found.get("preset"):
            text += f" ({other['name']} would be the best, with an expected KLD of "
            text += f"{kld(other['expected'])})"
        return text
    value, error = rival.difference
    preset = f"{rival.form.name} ({size_text(rival.form.bytes, forms)})"
    digits = places([rival.difference], 6)[0]
    by = f"KLD {'lower' if value < 0 else 'higher'} by {decimal(abs(value), digits)}"
    by += f", of under {ENOUGH} chunks" if error is None else f" ± {decimal(error, digits)}"
    if error is None:
        how = "cannot be told from"
    elif value < -judge.SURE * error:
        how = f"loses {max(0.01, 1 - form.loss / rival.form.loss):.0%} less than"
    elif value > judge.SURE * error:
        how = "is worse than"
    else:
        how, by = "is not better than", f"{by}, within {judge.SURE:g} errors"
    return f"{how} {preset}, the best preset here that is no larger: {by}"


def kld(value: float, error: float | None = None) -> str:
    """A KLD as text, with its error."""
    digits = places([Figure(value, error)], 6)[0]
    return decimal(value, digits) + (f" ± {decimal(error, digits)}" if error else "")


class Run(NamedTuple):
    """Neighbouring layers whose tensors of a kind have one type. type: None if there is none."""

    type: str | None
    first: int
    count: int

    @property
    def where(self) -> str:
        """The layers in words: layer 3; layers 3 to 7."""
        last = self.first + self.count - 1
        return f"layer {last}" if self.count == 1 else f"layers {self.first} to {last}"


class Map(NamedTuple):
    """The types of a mix by layer and kind of tensor.

    layers: their number. kinds: {kind: runs of layers}. others: {tensor in no layer: type}. ticks:
    [(first layer, number of layers)], what the axis of layers is divided into.
    """

    layers: int
    kinds: dict[str, list[Run]]
    others: dict[str, str]
    ticks: list[tuple[int, int]]


def heat_map(types: Mapping[str, str]) -> Map:
    """The map of a mix, {tensor: type}."""
    inside = {name: found for name in types if (found := _IN_LAYER.fullmatch(name))}
    layers = 1 + max((int(found[1]) for found in inside.values()), default=-1)
    grid: dict[str, list[str | None]] = {}
    for name, found in inside.items():
        grid.setdefault(found[2], [None] * layers)[int(found[1])] = types[name]
    others = {n.removesuffix(".weight"): kind for n, kind in types.items() if n not in inside}
    step = 1 if layers <= 12 else 5 if layers <= 40 else 10
    ticks = [(first, min(step, layers - first)) for first in range(0, layers, step)]
    return Map(layers, {kind: list(_runs(row)) for kind, row in grid.items()}, others, ticks)


def _runs(row: list[str | None]) -> Iterable[Run]:
    """The runs of one type in a row of layers."""
    first = 0
    for kind, group in itertools.groupby(row):
        yield Run(kind, first, count := len(list(group)))
        first += count


def shades(types: Iterable[str]) -> dict[str, tuple[float, int]]:
    """{type: (bits a weight, how dark it is shown in percent)}, the smallest first."""
    bits = {kind: TENSOR_BITS[kind] for kind in types}
    ordered = sorted(bits, key=lambda kind: (bits[kind], kind))
    span = math.log(DARKEST / LIGHTEST)
    shares = {kind: math.log(bits[kind] / LIGHTEST) / span for kind in ordered}
    return {kind: (bits[kind], round(100 * min(1, max(0.06, shares[kind])))) for kind in ordered}

"""sensitivity.json: what the damage of each tensor in each type costs, in nats a token.

engine, corpus, context, chunks   what it was measured with: CONTEXT tokens in a chunk
probe       the type that the groups were measured in
groups      {group: {tensors: [name], kld, rounding}}: with these tensors alone in the probe's type;
            what of it comes from other roundings in the layers behind, not from these tensors
biased      the type that the kinds of tensors were measured in; null: none was
kinds       {kind: {kld, rounding, gain}}: with all tensors of a kind in that type; how much more
            their bias costs than their error (of others, nothing more)
tensors     {name: {type: [bytes in a file, error, bias, damage]}}; the two are those of damage.py
pure        {type: {bytes, damage, kld}}: all tensors in it, as predicted and as measured
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scipy.optimize import brentq

from lib.errors import UserError
from lib.formats.json_file import read_json
from lib.formats.quants import TENSOR_BITS
from lib.mixes.choice import Choices

GROUPS = 300  # at most; of more tensors, those of neighbouring layers are measured together
PROBE_BITS = 4.5
# A smaller share of the roundings is not told from them, nor fewer nats a token from nothing.
TOLD, LEAST = 0.05, 1e-8
# A type tells what a bias costs if its share in the error is so many times the probe's.
BIASED = 5
GAIN = 1000.0  # at most

# {type that was tried: {tensor: (the type that it has in its place, error, bias)}}
Changes = Mapping[str, Mapping[str, tuple[str, float, float]]]

_IN_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")


class Sensitivity(NamedTuple):
    """What a sensitivity.json says.

    choices: bytes and damage of each tensor in each type. pure: (damage, measured KLD) of models in
    one type, by damage.
    """

    choices: Choices
    pure: list[tuple[float, float]]

    def expected(self, damage: float) -> float:
        """The KLD to expect of a mix with this damage, in nats a token.

        The damages of many tensors do not quite add up. How far they do not is known of the models
        in one type, and taken in proportion between those.
        """
        if not damage:
            return 0.0
        (low, at_low), *_ = below = [p for p in self.pure if p[0] <= damage][-1:] or self.pure[:1]
        (high, at_high), *_ = [p for p in self.pure if p[0] > damage][:1] or below
        share = math.log(damage / low) / math.log(high / low) if high != low else 0.0
        return damage * (at_low / low) ** (1 - share) * (at_high / high) ** share


def read(path: Path) -> Sensitivity:
    """Read a sensitivity.json. Raises UserError if it is none."""
    document = read_json(path)
    try:
        choices = {
            name: {kind: (size, damage) for kind, (size, *_, damage) in kinds.items()}
            for name, kinds in document["tensors"].items()
        }
        pure = sorted((entry["damage"], entry["kld"]) for entry in document["pure"].values())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: not a sensitivity.json") from None
    return Sensitivity(choices, [(damage, kld) for damage, kld in pure if damage > 0 < kld])


def probe_of(types: Iterable[str]) -> str:
    """The type that the groups are measured in: that of about PROBE_BITS bits a weight."""
    return min(types, key=lambda kind: (abs(TENSOR_BITS[kind] - PROBE_BITS), kind != "q4_k"))


def groups_of(names: Iterable[str]) -> dict[str, list[str]]:
    """{group: tensors}: one kind of tensor in neighbouring layers, others alone.

    Each tensor is a group where that makes no more than GROUPS of them.
    """
    found = {name: match for name in names if (match := _IN_LAYER.fullmatch(name))}
    alone = [name for name in names if name not in found]
    kinds = {match[2] for match in found.values()}
    layers = 1 + max((int(match[1]) for match in found.values()), default=0)
    bands = min(layers, max(1, (GROUPS - len(alone)) // max(1, len(kinds))))
    groups: dict[str, list[str]] = {name: [name] for name in alone}
    for name, match in found.items():
        band = int(match[1]) * bands // layers
        first, last = -(-band * layers // bands), -(-(band + 1) * layers // bands) - 1
        where = f"{first}" if first == last else f"{first}-{last}"
        groups.setdefault(f"{match[2]} {where}", []).append(name)
    return groups


def begins_at(names: Collection[str]) -> int | None:
    """The first layer that computes with other numbers when these tensors change.

    None: no layer does, only the output.
    """
    layers = [int(match[1]) for name in names if (match := _IN_LAYER.fullmatch(name))]
    return min(layers, default=None if "output.weight" in names else 0)


def smallest_of_layers(groups: Mapping[str, list[str]], sizes: Mapping[str, int]) -> dict[int, str]:
    """{layer: its smallest tensor}, of the layers in which a group begins. sizes: of tensors."""
    begins = {begins_at(names) for names in groups.values()}
    inside = [name for names in groups.values() for name in names if _IN_LAYER.fullmatch(name)]
    found: dict[int, str] = {}
    for name in sorted(inside, key=lambda name: (sizes[name], name)):
        if (layer := begins_at([name])) in begins:
            found.setdefault(layer, name)
    return found


def own(kld: float, rounding: float) -> float:
    """What a group's tensors themselves make of its KLD; all in nats a token."""
    return max(kld - rounding, TOLD * rounding, LEAST)


def most_biased(changes: Changes) -> str:
    """The type whose biases are the largest share of its errors."""
    return max(changes, key=lambda kind: (_share(changes[kind].values()), kind))


def _share(entries: Iterable[tuple[str, float, float]]) -> float:
    _, errors, biases = zip(*entries, strict=True)
    return sum(biases) / (sum(errors) or 1.0)


def kinds_of(names: Iterable[str]) -> dict[str, list[str]]:
    """{kind: tensors}: one kind of tensor in all layers, others alone."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        match = _IN_LAYER.fullmatch(name)
        kinds.setdefault(match[2] if match else name, []).append(name)
    return kinds


def biased_kinds(changes: Changes, probe: str) -> dict[str, list[str]]:
    """The kinds of tensors that tell what a bias costs, in the most biased type.

    The others get a type there, by a fallback say, in which their bias is hardly more of the error
    than in the probe's.
    """

    def share(tried: str, names: list[str]) -> float:
        return _share(changes[tried][name] for name in names)

    biased, kinds = most_biased(changes), kinds_of(changes[probe])
    return {
        kind: names
        for kind, names in kinds.items()
        if share(biased, names) > BIASED * share(probe, names)
    }


def document(
    sizes: Mapping[str, Mapping[str, int]],
    changes: Changes,
    groups: Mapping[str, list[str]],
    probe: str,
    klds: Mapping[str, float],
    kinds: Mapping[str, float],
    rounding: Mapping[int | None, float],
    pure: Mapping[str, float],
) -> dict[str, Any]:
    """The parts of sensitivity.json that are computed.

    sizes: {tensor: {type: bytes}}. changes: of each type that was tried. groups: {group: tensors}.
    klds, kinds, pure: {group, kind, type: measured KLD}; kinds are those of `biased_kinds`.
    rounding: {layer: the KLD that other roundings from there on make}.

    A group's KLD, less that of the roundings, is divided among its tensors in proportion to error +
    gain * bias, and so is a tensor's damage in another type. The gain is that with which the
    damages of a kind add up to what was measured of it.
    """
    tried: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in sizes}
    for entries in changes.values():
        for name, (stored, error, bias) in entries.items():
            tried[name][stored] = error, bias
    rounded = {group: rounding.get(begins_at(names), 0.0) for group, names in groups.items()}
    biased = most_biased(changes)

    def damages(inside: Iterable[str], gain: float) -> dict[str, dict[str, float]]:
        """{tensor: {type: damage}} of some groups."""
        found = {}
        for group in inside:
            weighed = {
                name: {kind: error + gain * bias for kind, (error, bias) in tried[name].items()}
                for name in groups[group]
            }
            whole = sum(of[changes[probe][name][0]] for name, of in weighed.items())
            cost = own(klds[group], rounded[group]) / whole if whole else 0.0
            for name, of in weighed.items():
                found[name] = {kind: cost * weight for kind, weight in of.items()}
        return found

    def gain_of(inside: Iterable[str], kld: float) -> float:
        """The gain with which the damages in the biased type are the KLD of it."""

        def excess(gain: float) -> float:
            found = damages(inside, gain).items()
            return sum(of[changes[biased][name][0]] for name, of in found) - kld

        if excess(0.0) >= 0 or excess(GAIN) <= 0:
            return 0.0 if excess(0.0) >= 0 else GAIN
        return brentq(excess, 0.0, GAIN)

    tensors: dict[str, dict[str, list]] = {}
    of_kinds: dict[str, dict[str, float]] = {}
    for kind, names in kinds_of(sizes).items():
        inside, gain = [group for group in groups if groups[group][0] in names], 0.0
        if kind in kinds:
            noise = rounding.get(begins_at(names), 0.0)
            gain = gain_of(inside, own(kinds[kind], noise))
            of_kinds[kind] = {"kld": kinds[kind], "rounding": noise, "gain": gain}
        for name, found in damages(inside, gain).items():
            tensors[name] = {
                stored: [size, *tried[name][stored], found[stored]]
                for stored, size in sizes[name].items()
            }
    whole: dict[str, dict[str, float]] = {}
    for kind, kld in pure.items():
        stored = {name: found[0] for name, found in changes[kind].items()}
        if all(stored[name] in sizes[name] for name in stored):
            entries = [tensors[name][stored[name]] for name in stored]
            size, damage = (sum(entry[at] for entry in entries) for at in (0, -1))
            whole[kind] = {"bytes": size, "damage": damage, "kld": kld}
    return {
        "probe": probe,
        "groups": {
            name: {"tensors": groups[name], "kld": klds[name], "rounding": rounded[name]}
            for name in groups
        },
        "biased": biased if kinds else None,
        "kinds": of_kinds,
        "tensors": {name: tensors[name] for name in sizes},
        "pure": whole,
    }

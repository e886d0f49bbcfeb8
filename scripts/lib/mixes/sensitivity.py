"""sensitivity.json: what the damage of each tensor in each type costs, in nats a token.

engine, corpus, context, chunks   what it was measured with: CONTEXT tokens in a chunk
probe       the type that the groups were measured in
groups      {group: {tensors: [name], kld, rounding}}: with these tensors alone in the probe's type;
            what of it comes from other roundings in the layers behind, not from these tensors
tensors     {name: {type: [bytes in a file, error, damage]}}; errors are those of damage.py
pure        {type: {bytes, damage, kld}}: all tensors in it, as predicted and as measured
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.errors import UserError
from lib.formats.json_file import read_json
from lib.formats.quants import TENSOR_BITS
from lib.mixes.choice import Choices

GROUPS = 300  # at most; of more tensors, those of neighbouring layers are measured together
PROBE_BITS = 4.5
# A smaller share of the roundings is not told from them, nor fewer nats a token from nothing.
TOLD, LEAST = 0.05, 1e-8

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
            name: {kind: (size, damage) for kind, (size, _, damage) in kinds.items()}
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


def document(
    sizes: Mapping[str, Mapping[str, int]],
    errors: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, list[str]],
    klds: Mapping[str, float],
    rounding: Mapping[int | None, float],
    probed: Mapping[str, str],
    pure: Mapping[str, tuple[Mapping[str, str], float]],
) -> dict[str, Any]:
    """The parts of sensitivity.json that are computed.

    sizes: {tensor: {type: bytes}}. errors: {tensor: {type: error}}. groups: {group: tensors}. klds:
    of the groups. rounding: {layer: the KLD that other roundings from there on make}. probed:
    {tensor: the probe's type, or that for which it is stored in another}. pure: {type: ({tensor:
    type}, measured KLD)}.

    A group's KLD, less that of the roundings, is divided among its tensors by their errors, and a
    tensor's damage in another type is in proportion to its error there.
    """
    tensors: dict[str, dict[str, list]] = {}
    rounded = {group: rounding.get(begins_at(names), 0.0) for group, names in groups.items()}
    for group, names in groups.items():
        whole = sum(errors[name][probed[name]] for name in names)
        cost = own(klds[group], rounded[group]) / whole if whole else 0.0
        for name in names:
            tensors[name] = {
                kind: [size, errors[name][kind], errors[name][kind] * cost]
                for kind, size in sizes[name].items()
            }
    return {
        "groups": {
            name: {"tensors": groups[name], "kld": klds[name], "rounding": rounded[name]}
            for name in groups
        },
        "tensors": {name: tensors[name] for name in sizes},
        "pure": {
            kind: {
                "bytes": sum(tensors[name][stored][0] for name, stored in types.items()),
                "damage": sum(tensors[name][stored][2] for name, stored in types.items()),
                "kld": kld,
            }
            for kind, (types, kld) in pure.items()
        },
    }

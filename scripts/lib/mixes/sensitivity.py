"""sensitivity.json: what the damage of each tensor in each type costs, in nats a token.

engine, corpus, context, chunks   what it was measured with: CONTEXT tokens in a chunk
probe       the type that the groups were measured in
groups      {group: {tensors: [name], kld}}: with these tensors alone in the probe's type
tensors     {name: {type: [bytes in a file, error, damage]}}; errors are those of damage.py
pure        {type: {bytes, damage, kld}}: all tensors in it, as predicted and as measured
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.errors import UserError
from lib.formats.json_file import read_json
from lib.formats.quants import TENSOR_BITS
from lib.mixes.choice import Choices

GROUPS = 128  # at most; of more tensors, those of neighbouring layers are measured together
PROBE_BITS = 4.5
LEAST = 1e-8  # nats a token: less is not told from nothing

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


def document(
    sizes: Mapping[str, Mapping[str, int]],
    errors: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, list[str]],
    klds: Mapping[str, float],
    probed: Mapping[str, str],
    pure: Mapping[str, tuple[Mapping[str, str], float]],
) -> dict[str, Any]:
    """The parts of sensitivity.json that are computed.

    sizes: {tensor: {type: bytes}}. errors: {tensor: {type: error}}. groups: {group: tensors}. klds:
    of the groups. probed: {tensor: the probe's type, or that for which it is stored in another}.
    pure: {type: ({tensor: type}, measured KLD)}.

    A group's KLD is divided among its tensors by their errors, and a tensor's damage in another
    type is in proportion to its error there.
    """
    tensors: dict[str, dict[str, list]] = {}
    for group, names in groups.items():
        whole = sum(errors[name][probed[name]] for name in names)
        cost = max(klds[group], LEAST) / whole if whole else 0.0
        for name in names:
            tensors[name] = {
                kind: [size, errors[name][kind], errors[name][kind] * cost]
                for kind, size in sizes[name].items()
            }
    return {
        "groups": {name: {"tensors": groups[name], "kld": klds[name]} for name in groups},
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

"""The best mix: one type for each tensor, by an exact solver (HiGHS, in SciPy).

The damage of a mix is taken as the sum of its tensors' damages (docs/mixes.md says where that
holds). So this is a knapsack problem with several choices an item.
"""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array

Choices = Mapping[str, Mapping[str, tuple[int, float]]]
"""{tensor: {type: (bytes, damage in nats a token)}}."""
Mix = dict[str, str]
"""{tensor: type}."""
GAP = 1e-6  # how far the damage may be from the least possible, as a share of it


def best_within(choices: Choices, budget: int) -> Mix | None:
    """The mix of least damage whose tensors have at most `budget` bytes; None if none has."""
    return _solve(choices, budget, minimised=1, limited=0)


def smallest_within(choices: Choices, damage: float) -> Mix | None:
    """The smallest mix whose damage is at most `damage` nats a token; None if there is none."""
    return _solve(choices, damage, minimised=0, limited=1)


def total(choices: Choices, mix: Mapping[str, str]) -> tuple[int, float]:
    """The bytes of a mix's tensors, and its damage."""
    parts = [choices[name][kind] for name, kind in mix.items()]
    return sum(size for size, _ in parts), sum(damage for _, damage in parts)


def _solve(choices: Choices, limit: float, minimised: int, limited: int) -> Mix | None:
    """The mix of the least sum of one of a choice's two figures, whose sum of the other fits."""

    def in_order(kinds: Mapping[str, tuple[int, float]], figure: int) -> list[str]:
        return sorted(kinds, key=lambda kind: (kinds[kind][figure], kinds[kind]))

    least = {name: in_order(kinds, limited)[0] for name, kinds in choices.items()}
    if total(choices, least)[limited] > limit:
        return None
    keys = [
        (name, kind)
        for name, kinds in choices.items()
        for kind in _useful(kinds)
        if kinds[kind][limited] <= limit
    ]
    figures = np.array([choices[name][kind] for name, kind in keys], dtype=float)
    row = {name: number for number, name in enumerate(choices)}
    rows = [row[name] for name, _ in keys]
    one_each = csr_array((np.ones(len(keys)), (rows, range(len(keys)))))
    # The solver's tolerances are for numbers around 1: so are the limit and the least sum.
    best = {name: in_order(kinds, minimised)[0] for name, kinds in choices.items()}
    objective = figures[:, minimised] / (total(choices, best)[minimised] or 1)
    used, allowed = figures[None, :, limited] / (limit or 1), 1.0
    while True:
        found: OptimizeResult = milp(
            objective,
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(used, -np.inf, allowed),
            ],
            integrality=np.ones(len(keys)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": GAP},
        )
        if found.x is None:
            return least  # which fits exactly, and no better one does for sure
        taken = zip(keys, found.x, strict=True)
        mix = {name: kind for (name, kind), chosen in taken if chosen > 0.5}
        if (over := total(choices, mix)[limited] - limit) <= 0:
            return mix
        allowed -= 2 * over / limit  # it was within the solver's tolerance, and not within ours


def _useful(kinds: Mapping[str, tuple[int, float]]) -> list[str]:
    """The types that no other beats in both bytes and damage."""
    found: list[str] = []
    for kind in sorted(kinds, key=lambda kind: kinds[kind]):
        if not found or kinds[kind][1] < kinds[found[-1]][1]:
            found.append(kind)
    return found

"""The registry of all stages and families: STAGES by rule, FAMILIES by key."""

from importlib import import_module

from lib.cards.registry import LINES
from lib.record import bound as bounds
from lib.stages import (
    demo,
    environments,
    harness,
    merge,
    moe,
    report,
    similarity,
    sources,
    studies,
    toolchain,
)
from lib.stages.family import Family
from lib.stages.stage import Stage

# The family of a merge's own weights, which has no section.
FULL_WEIGHTS = "safetensors"
FAMILIES: dict[str, Family] = {name: import_module(f"lib.stages.{name}").FAMILY for name in LINES}

_STAGES: list[Stage] = [*toolchain.STAGES, *environments.STAGES, *demo.STAGES]
_STAGES += [*sources.STAGES, *similarity.STAGES, *merge.STAGES, *moe.STAGES]
_OWN = [stage for family in FAMILIES.values() for stage in family.stages]
# In the order in which `snakemake status` shows their columns.
_STAGES += sorted([*_OWN, *harness.STAGES], key=lambda stage: stage.measures)
_STAGES += [*report.STAGES, *studies.STAGES]
STAGES: dict[str, Stage] = {stage.rule: stage for stage in _STAGES}
bounds.OF_RULE.update({rule: stage.bound for rule, stage in STAGES.items()})


def family_of(rule: str) -> Family | None:
    """The family whose forms a rule makes; None if the rule makes no forms."""
    return next((family for family in FAMILIES.values() if rule in family.quantized), None)

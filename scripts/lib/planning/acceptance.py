"""Accept artifacts as they are although the code or the tools that make them have changed.

After an upgrade of Quantmill or of a tool, `snakemake accept` adopts artifacts whose recipes differ
in code or tools alone. Changed options, sources and inputs are never accepted: each input must be
the one that the artifact was made from, and be fresh or accepted too.
"""

import getpass
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lib.planning.staleness import Plan, State
from lib.record import cold
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.record.recipe import Record


@dataclass
class Acceptance:
    """The answer to a request to accept artifacts. Each list has an artifact after its inputs.

    adopted: artifacts that can be accepted, each with lines on what differs; not written yet.
    refused: the other stale artifacts, each with lines on why not.
    retold: reports and cards, which only describe others and are to be made anew afterwards.
    """

    adopted: list[tuple[Artifact, list[str]]] = field(default_factory=list)
    refused: list[tuple[Artifact, list[str]]] = field(default_factory=list)
    retold: list[Artifact] = field(default_factory=list)


def judge(plan: Plan, asked: Iterable[Artifact]) -> Acceptance:
    """Decide which of these artifacts, and of their inputs, can be accepted."""
    answer = Acceptance()
    # {path: whether the artifact is as wanted, or will be once it is accepted}
    sound: dict[str, bool] = {}

    def visit(artifact: Artifact) -> bool:
        if artifact.path not in sound:
            sound[artifact.path] = False
            above = {role: visit(up) for role, up in artifact.inputs.items()}
            sound[artifact.path] = _look(artifact, above)
        return sound[artifact.path]

    def _look(artifact: Artifact, above: dict[str, bool]) -> bool:
        if artifact.rule == cold.RULE:  # a note follows the record of what it is of
            return True
        record, verdict = plan.record(artifact), plan.verdict(artifact)
        if record and record.fits(artifact.digest):
            if verdict.state is State.STALE:
                answer.refused.append((artifact, verdict.reasons))
            return verdict.state is not State.STALE and not verdict.damaged
        if artifact.describes:
            if all(above.values()) and not artifact.on_demand:
                answer.retold.append(artifact)
            return all(above.values())
        reasons = _obstacles(plan, artifact, record, above)
        if not reasons:
            answer.adopted.append((artifact, plan.changes(artifact, record)))
        elif verdict.state is State.STALE or record:
            answer.refused.append((artifact, reasons))
        return not reasons

    for artifact in asked:
        visit(artifact)
    return answer


def _obstacles(
    plan: Plan, artifact: Artifact, record: Record | None, above: dict[str, bool]
) -> list[str]:
    """Why an artifact cannot be accepted, one line for each reason; empty if it can.

    above: {role of an input: whether that is sound}.
    """
    if record is None:
        return ["no record says how it was made"]
    away = artifact.intermediate or cold.place_of(artifact.path, record)
    there = not away or os.path.lexists(artifact.path)
    if there and (wrong := plan.damage(artifact, record)):
        return wrong
    old, new = record.recipe, artifact.recipe
    lines = recipes.difference(old.get("options"), new["options"])
    lines += recipes.difference(old.get("sources"), new["sources"], "sources")
    if old.get("step") != new["step"]:
        lines.append(f"made by {old.get('step')}, now by {new['step']}")
    before = old.get("inputs", {})
    for role in sorted(before.keys() | artifact.inputs.keys()):
        if role not in before or role not in artifact.inputs:
            lines.append(f"{role}: {'no longer' if role in before else 'now'} an input")
        elif (
            before[role] == artifact.inputs[role].digest
            and not plan.verdict(artifact.inputs[role]).damaged
        ):
            continue
        elif not above[role]:
            lines.append(f"{artifact.inputs[role].path}, from which it is made, is not acceptable")
        elif not _same_input(plan, artifact.inputs[role], before[role], record.inputs.get(role)):
            lines.append(f"{artifact.inputs[role].path} is not the one from which this was made")
    return lines


def _same_input(plan: Plan, up: Artifact, digest: str, sha256: str | None) -> bool:
    """Whether the input on disk is the one that an artifact was made from, by its sha256.

    Links have no bytes of their own: for them the recipe (`digest`) decides.
    """
    now = plan.record(up)
    if now is None or (not up.links and sha256 != now.sha256):
        return False
    return now.fits(digest) or not up.links


def adopt(answer: Acceptance) -> None:
    """Write into the records who accepted what, and when. The recipe of the build stays there."""
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    for artifact, lines in answer.adopted:
        entry = {"digest": artifact.digest, "by": _user(), "at": at, "differs": lines}
        for path in artifact.outputs:
            record = recipes.read(path)
            record.accepted.append(entry)
            recipes.write(record)
            cold.follow(record)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no name for this number, as in some containers
        return str(os.getuid())

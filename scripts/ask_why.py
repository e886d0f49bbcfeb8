"""Say why artifacts are stale: how the recipe that the config wants differs from the recorded one.

First come the artifacts that have a change of their own, by reason. Then come those that are stale
only because an input is, and then the missing intermediates that are built again for them.
`snakemake why --config target=FILE,RULE,MODEL` tells of these artifacts alone, fresh ones too.
"""

import os
import shlex

from lib.errors import program
from lib.planning.acceptance import judge
from lib.planning.staleness import FROM_DAMAGED, Plan, State
from lib.record.artifact import Artifact
from lib.record.recipe import MADE_FROM
from lib.run.answers import (
    SHOWN,
    by_reason,
    chosen,
    everything,
    first,
    listed,
    open_session,
    parser,
    short,
)
from lib.run.session import Session
from lib.run.studies import notes
from lib.units import human, is_are


def main() -> None:
    session = open_session(parser(__doc__).parse_args().config)
    lines = each(session) if session.options.target else report(session)
    print("\n".join([*lines, *notes(session.plan)]))


def report(session: Session) -> list[str]:
    """The lines on everything that is stale, by reason."""
    plan, asked = session.plan, chosen(session)
    built = session.taking.builds(asked)
    stale = [artifact for artifact in built if plan.state(artifact) is State.STALE]
    on_the_way = [artifact for artifact in built if plan.state(artifact) is State.ABSENT]
    if not stale:
        return ["Nothing is stale: everything that the config declares is there as it is wanted."]
    lines = [f"{len(stale)} of {len(everything(session))} artifacts {is_are(len(stale))} stale."]
    if count := len(judge(plan, asked).adopted):
        lines.append(
            f"{count} of these {'differs' if count == 1 else 'differ'} in code or tools alone: "
            "`snakemake accept` shows and takes them."
        )
    roots = [artifact for artifact in stale if not follows(plan, artifact)]
    found = by_reason((artifact, plan.verdict(artifact).reasons) for artifact in roots)
    for texts, group in found.items():
        lines += ["", *texts, *listed(group)]
    following = [artifact for artifact in stale if follows(plan, artifact)]
    if following:
        texts = [follower(artifact, origins(plan, artifact)) for artifact in following]
        lines += ["", "made from these:", *first(texts, SHOWN, "    ")]
    if on_the_way:
        users = users_of([a for a in stale + on_the_way if session.taken(a) is None])
        texts = [f"    {artifact.path}{users.get(artifact, '')}" for artifact in on_the_way]
        lines += ["", "not there, and needed on the way:", *first(texts, SHOWN, "    ")]
    if taken := session.taking.sizes(built):
        size = human(sum(taken.values()))
        found = [artifact for artifact in built if artifact.path in taken]
        places = " and ".join({session.taking.where(artifact): None for artifact in found})
        lines += ["", f"taken from {places} and not built, {size}:", *listed(found)]
    lines += [
        "",
        "`snakemake --cores all` builds this; `snakemake plan` says how large and how long.",
    ]
    if any(plan.verdict(artifact).damaged for artifact in stale):
        lines.append("What is damaged is replaced: move it away first if the change was meant.")
    return lines


def users_of(artifacts: list[Artifact]) -> dict[Artifact, str]:
    """For each artifact from which some of these are made, which: "  for A and 3 more"."""
    found: dict[Artifact, list[str]] = {}
    for user in artifacts:
        for up in {*user.inputs.values(), *user.uses.values()}:
            found.setdefault(up, []).append(named(user, up))
    return {
        up: f"  for {name}" + (f" and {len(others)} more" if others else "")
        for up, (name, *others) in found.items()
    }


def named(artifact: Artifact, beside: Artifact) -> str:
    """An artifact's path, without results/MODEL/ if another artifact is of the same model."""
    return short(artifact) if artifact.model == beside.model else artifact.path


def each(session: Session) -> list[str]:
    """The lines on each artifact that was named: its state, the reasons, how to build it again."""
    lines = []
    for artifact in chosen(session):
        verdict, record = session.plan.verdict(artifact), session.plan.record(artifact)
        lines.append(f"{artifact.path}  ({artifact.rule})")
        if verdict.state is State.FRESH:
            size = f", {human(record.bytes)}" if record else ""
            lines.append(f"    fresh: as its recipe says{size}")
            if accepted := record and record.acceptance(artifact.digest):
                lines.append(f"    accepted by {accepted['by']} on {accepted['at']}, although:")
                lines += [f"        {line}" for line in accepted["differs"]]
        elif verdict.state is State.ABSENT:
            gone = (
                "not there" if not os.path.lexists(artifact.path) else "no longer as it is wanted"
            )
            lines.append(
                f"    {gone}, and not needed: it is made again when something stale is made from it"
            )
            lines += [f"    {reason}" for reason in verdict.reasons if reason != "it is not there"]
        else:
            lines += [f"    stale: {reason}" for reason in verdict.reasons]
            if verdict.damaged:
                lines.append(
                    "    what was made from it is stale too; the next run replaces all of it"
                )
        if taken := session.taken(artifact):
            where = session.taking.where(artifact)
            lines.append(f"    {where} has it, {human(taken)}: taken, not built")
        if verdict.state is not State.FRESH:
            lines.append(f"    again: snakemake --cores all {shlex.quote(artifact.path)}")
    return lines


def follows(plan: Plan, artifact: Artifact) -> bool:
    """Whether an artifact is stale only because its inputs are.

    A report or a card counts as such whenever an input of it has changed.
    """
    reasons = plan.verdict(artifact).reasons
    if artifact.describes and origins(plan, artifact):
        return True
    return all(reason.startswith(MADE_FROM) or FROM_DAMAGED in reason for reason in reasons)


def origins(plan: Plan, artifact: Artifact) -> list[str]:
    """The names of the inputs of an artifact that have changed, in the order of its inputs."""
    record = plan.record(artifact)
    before = record.recipe.get("inputs", {}) if record else {}
    changed = (
        named(up, artifact)
        for role, up in artifact.inputs.items()
        if before.get(role) != up.digest or plan.verdict(up).damaged
    )
    return list(dict.fromkeys(changed))


def follower(artifact: Artifact, names: list[str]) -> str:
    """A line: the artifact, "from", and as many of the names as fit into it."""
    for count in range(len(names), 0, -1):
        more = [f"{len(names) - count} more"] if count < len(names) else []
        line = f"    {artifact.path}  from {', '.join([*names[:count], *more])}"
        if len(line) <= 98:
            break
    return line


if __name__ == "__main__":
    program(main)

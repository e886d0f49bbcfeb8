"""Accept artifacts as they are, although the code or the tools that make them have changed.

`snakemake accept --config target=…` names files, rules, models, or `all`. An artifact is accepted
together with everything that it is made from. The differences are printed first. The records keep
the recipes by which the artifacts were really made, and say who accepted them; `why`, the cards and
`verify_rebuild` tell it too. Reports and cards are built again. Without a target, nothing is
accepted: the program only lists what could be. Exit status 1 if a file that was named cannot be
accepted.
"""

from pathlib import Path

from lib.errors import UserError, program
from lib.planning.acceptance import Acceptance, adopt, judge
from lib.record.artifact import Artifact
from lib.run.answers import build, by_reason, chosen, listed, open_session, parser
from lib.run.hold import held_directory
from lib.run.session import Session
from lib.units import count, human


def main() -> int | None:
    arguments = parser(__doc__, builds=True).parse_args()
    session = open_session(arguments.config)
    named = session.options.target
    if not named:
        print("\n".join(offer(judge(session.plan, session.graph))))
        return None
    with held_directory():
        answer = judge(session.plan, chosen(session))
        print("\n".join(shown(session, answer)), flush=True)
        adopt(answer)
    # Reports and cards tell what was accepted.
    retold = [artifact.path for artifact in answer.retold]
    if retold and not build(arguments, arguments.config, "--", *retold):
        raise UserError("the reports could not be made anew; see above")
    return any(str(Path(word)) == one.path for one, _ in answer.refused for word in named)


def offer(answer: Acceptance) -> list[str]:
    """The lines that say what could be accepted, for a call without a target."""
    if not answer.adopted:
        return ["Nothing differs in code or tools alone: there is nothing to accept."]
    number = count(len(answer.adopted), "artifact")
    hint = "Say which: --config target=…, a file, a rule, a model, or all."
    return [*reasoned(answer.adopted), "", f"{number} could be accepted. {hint}"]


def shown(session: Session, answer: Acceptance) -> list[str]:
    """The lines that say what is accepted, with the differences, and what is refused and why."""
    lines = reasoned(answer.adopted)
    if answer.adopted:
        records = [session.plan.record(artifact) for artifact, _ in answer.adopted]
        size = human(sum(record.bytes for record in records))
        number = count(len(records), "artifact")
        lines += ["", f"{number} accepted, {size} that need not be built again."]
    if answer.refused:
        lines += ["", "Not accepted:", *(f"    {line}" for line in reasoned(answer.refused))]
    return lines or ["Nothing to accept: all of it is as the config wants it."]


def reasoned(found: list[tuple[Artifact, list[str]]]) -> list[str]:
    """Lines: each set of reasons, then the paths of the artifacts that have it.

    found: (artifact, reasons).
    """
    groups = by_reason(found).items()
    return [line for reasons, group in groups for line in (*reasons, *listed(group))]


if __name__ == "__main__":
    program(main)

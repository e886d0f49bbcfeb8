"""Accept artifacts as they are, although the code or the tools that make them have changed.

`snakemake accept --config target=…` names files, rules, models, or `all`. An artifact is accepted
together with everything that it is made from. The differences are printed first. The records keep
the recipes by which the artifacts were really made, and say who accepted them; `why`, the cards and
`verify_rebuild` tell it too. Reports and cards are built again. Without a target, nothing is
accepted: the program only lists what could be. Exit status 1 if a file that was named cannot be
accepted.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from lib.errors import UserError, program
from lib.planning.acceptance import Acceptance, adopt, judge
from lib.record.artifact import Artifact
from lib.record.recipe import MADE_FROM, ONLY_MADE_FROM
from lib.run.answers import chosen, listed, open_session, parser
from lib.run.hold import held_directory
from lib.run.session import Session
from lib.units import human


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
    if answer.retold:
        retell(answer.retold, arguments)
    return any(str(Path(word)) == one.path for one, _ in answer.refused for word in named)


def offer(answer: Acceptance) -> list[str]:
    """The lines that say what could be accepted, for a call without a target."""
    if not answer.adopted:
        return ["Nothing differs in code or tools alone: there is nothing to accept."]
    lines = by_reason(answer.adopted)
    return [
        *lines,
        "",
        f"{count(answer.adopted)} could be accepted. Say which: --config target=…, "
        "a file, a rule, a model, or all.",
    ]


def shown(session: Session, answer: Acceptance) -> list[str]:
    """The lines that say what is accepted, with the differences, and what is refused and why."""
    lines = by_reason(answer.adopted)
    if answer.adopted:
        records = [session.plan.record(artifact) for artifact, _ in answer.adopted]
        size = human(sum(record.bytes for record in records))
        lines += ["", f"{count(answer.adopted)} accepted, {size} that need not be built again."]
    if answer.refused:
        lines += ["", "Not accepted:", *by_reason(answer.refused, "    ")]
    return lines or ["Nothing to accept: all of it is as the config wants it."]


def count(artifacts: list) -> str:
    """The number of artifacts with its noun: "1 artifact", "2 artifacts"."""
    return f"{len(artifacts)} artifact{'' if len(artifacts) == 1 else 's'}"


def by_reason(found: list[tuple[Artifact, list[str]]], indent: str = "") -> list[str]:
    """Lines: each set of reasons, then the paths of the artifacts that have it.

    found: (artifact, reasons). The reason that an input changed is left out where an artifact has
    other reasons.
    """
    groups: dict[tuple[str, ...], list[Artifact]] = {}
    for artifact, reasons in found:
        own = [reason for reason in reasons if not reason.startswith(MADE_FROM)]
        groups.setdefault(tuple(own or [ONLY_MADE_FROM]), []).append(artifact)
    return [
        f"{indent}{line}"
        for reasons, group in groups.items()
        for line in (*reasons, *listed(group))
    ]


def retell(artifacts: list[Artifact], arguments: argparse.Namespace) -> None:
    """Build reports and cards again, because they tell what was accepted.

    Raises UserError if Snakemake fails.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", arguments.snakefile]
    command += ["--cores", arguments.cores, "--configfile", arguments.config, "--quiet", "all"]
    command += ["--", *(artifact.path for artifact in artifacts)]
    if subprocess.run(list(map(str, command))).returncode:
        raise UserError("the reports could not be made anew; see above")


if __name__ == "__main__":
    program(main)

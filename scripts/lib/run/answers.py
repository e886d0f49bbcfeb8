"""What the programs that answer questions share: their command line, the session, and tables."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from lib.errors import UserError
from lib.formats.json_file import read_json
from lib.record.artifact import Artifact, in_order
from lib.record.layout import home
from lib.record.recipe import MADE_FROM, ONLY_MADE_FROM
from lib.run.session import Session
from lib.store.store import VARIABLE

SHOWN = 30  # files of one reason
NOTHING_FORCED = SimpleNamespace(forcerun=(), forcetargets=False, forceall=False, targets=())


def parser(doc: str, builds: bool = False) -> argparse.ArgumentParser:
    """The command line of such a program.

    doc: its description. builds: whether it starts a build, and so takes --snakefile and --cores.
    """
    options = argparse.ArgumentParser(description=doc)
    options.add_argument(
        "--config",
        type=Path,
        required=True,
        help="JSON file: the config and the options of `--config`, as Snakemake has them",
    )
    if builds:
        options.add_argument("--snakefile", type=Path, required=True, help="the workflow's")
        options.add_argument("--cores", type=int, default=1, help="threads of the build")
    return options


def open_session(config: Path, **options) -> Session:
    """The session of a config in the working directory.

    config: the file that requests.config_file writes. options: keys that replace those in it.
    """
    return Session({**read_json(config), **options}, lambda: NOTHING_FORCED, True)


def build(
    arguments: argparse.Namespace, config: Path, *words: str | Path, takes: bool = True
) -> bool:
    """Whether Snakemake builds what it is asked for.

    arguments: of a `parser` that builds. words: further words of Snakemake's command line. takes:
    whether it may take from a store; what is built to be compared must not come from there.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", arguments.snakefile]
    command += ["--cores", arguments.cores, "--configfile", config, "--quiet", "all", *words]
    env = {key: text for key, text in os.environ.items() if takes or key != VARIABLE}
    return subprocess.run(list(map(str, command)), env=env).returncode == 0


def chosen(session: Session) -> list[Artifact]:
    """The artifacts that `--config target=…` names, by file, rule, model or `all`.

    Without a target: those that `snakemake` alone would build. Raises UserError for a word that
    names nothing.
    """
    words = session.options.target
    if not words:
        return [
            artifact for artifact in session.plan.stale(session.graph) if not artifact.temporary
        ]
    known = {path: artifact for artifact in everything(session) for path in artifact.outputs}
    rules = {artifact.rule for artifact in known.values()}
    found: dict[str, Artifact] = {}
    for word in words:
        path = str(Path(word))
        if path in known:
            named = [known[path]]
        elif word in session.graph.names:
            named = list(session.graph.artifacts(word).values())
        elif word in rules:
            named = [artifact for artifact in known.values() if artifact.rule == word]
        elif word == "all":
            named = list(session.graph)
        else:
            raise UserError(
                f"target: {word} is no model of the config, no rule that makes something, and no "
                "file that follows from the config"
            )
        found |= {artifact.path: artifact for artifact in named}
    return list(found.values())


def everything(session: Session) -> list[Artifact]:
    """All artifacts of the chosen models and all their inputs, each after its inputs."""
    return in_order(session.graph)


def short(artifact: Artifact) -> str:
    """The artifact's path without results/MODEL/ or results/studies/STUDY/."""
    return artifact.path.removeprefix(home(artifact.path)) if artifact.model else artifact.path


def columns(
    rows: Iterable[tuple[str, ...]], right: Iterable[int] = (), indent: str = "  "
) -> list[str]:
    """The rows as lines, with each column as wide as its widest cell.

    right: indexes of the columns that are aligned to the right.
    """
    rows, right = list(rows), set(right)
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        (
            indent
            + "  ".join(
                cell.rjust(width) if i in right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


def wrapped(words: Iterable[str], indent: str, width: int = 98) -> list[str]:
    """The words with commas between them, as lines of at most `width` characters."""
    lines, line = [], indent
    for word in words:
        if len(line) > len(indent) and len(line) + len(word) + 2 > width:
            lines.append(line.rstrip())
            line = indent
        line += f"{word}, "
    return [*lines, line.rstrip().removesuffix(",")] if line.strip() else lines


def listed(group: list[Artifact]) -> list[str]:
    """Lines with the artifacts' paths; those of one model share lines, SHOWN of them at most."""
    lines, models = [], {}
    for artifact in group:
        models.setdefault(artifact.model, []).append(artifact)
    for model, of_model in models.items():
        if len(of_model) == 1:
            lines.append(f"    {of_model[0].path}")
            continue
        lines.append(f"    results/{model}/" if model else "    resources/")
        names = [short(artifact).removeprefix("resources/") for artifact in of_model]
        lines += wrapped(first(names, SHOWN), "        ")
    return lines


def first(lines: list[str], number: int, indent: str = "") -> list[str]:
    """The first `number` lines, then a line that says how many more there are."""
    more = len(lines) - number
    return [*lines[:number], f"{indent}and {more} more"] if more > 0 else lines


def by_reason(
    found: Iterable[tuple[Artifact, list[str]]],
) -> dict[tuple[str, ...], list[Artifact]]:
    """{reasons: the artifacts that have them}.

    found: (artifact, reasons). The reason that an input changed is left out where an artifact has
    other reasons.
    """
    groups: dict[tuple[str, ...], list[Artifact]] = {}
    for artifact, reasons in found:
        own = [reason for reason in reasons if not reason.startswith(MADE_FROM)]
        groups.setdefault(tuple(own or [ONLY_MADE_FROM]), []).append(artifact)
    return groups

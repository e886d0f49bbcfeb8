"""What the scripts that answer questions share: the config that Snakemake left for them, and tables."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from lib.errors import UserError
from lib.formats.json_file import read_json
from lib.record.artifact import Artifact
from lib.run.session import Session

SHOWN = 30  # files of one reason
NOTHING_FORCED = SimpleNamespace(forcerun=(), forcetargets=False, forceall=False, targets=())


def parser(doc: str, builds: bool = False) -> argparse.ArgumentParser:
    """The command line of such a script. builds: it starts a build of its own."""
    options = argparse.ArgumentParser(description=doc)
    options.add_argument(
        "--config", type=Path, required=True, help="the config as JSON, with its options"
    )
    if builds:
        options.add_argument("--snakefile", type=Path, required=True, help="of this workflow")
        options.add_argument("--cores", type=int, default=1, help="for the build")
    return options


def open_session(config: Path, **options) -> Session:
    """The config's graph and plan, read in the working directory."""
    return Session({**read_json(config), **options}, lambda: NOTHING_FORCED, True)


def chosen(session: Session) -> list[Artifact]:
    """What `--config target=…` names, by file, rule or model; without it what `snakemake` alone would build."""
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
    """All artifacts of the chosen models, and what they are made from, each after that."""
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.path not in found:
            for up in (*artifact.uses.values(), *artifact.inputs.values()):
                visit(up)
            found[artifact.path] = artifact

    for artifact in session.graph:
        visit(artifact)
    return list(found.values())


def short(artifact: Artifact) -> str:
    """A path without results/MODEL/."""
    return (
        artifact.path.removeprefix(f"results/{artifact.model}/")
        if artifact.model
        else artifact.path
    )


def columns(
    rows: Iterable[tuple[str, ...]], right: Iterable[int] = (), indent: str = "  "
) -> list[str]:
    """Rows as lines, each column as wide as its widest cell; the columns in `right` are aligned there."""
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
    """Words with commas between, over as many lines as they need."""
    lines, line = [], indent
    for word in words:
        if len(line) > len(indent) and len(line) + len(word) + 2 > width:
            lines.append(line.rstrip())
            line = indent
        line += f"{word}, "
    return [*lines, line.rstrip().removesuffix(",")] if line.strip() else lines


def listed(group: list[Artifact]) -> list[str]:
    """Paths, those of one model on shared lines."""
    lines, models = [], {}
    for artifact in group:
        models.setdefault(artifact.model, []).append(artifact)
    for model, of_model in models.items():
        if len(of_model) == 1:
            lines.append(f"    {of_model[0].path}")
            continue
        lines.append(f"    results/{model}/" if model else "    resources/")
        names = [short(artifact).removeprefix("resources/") for artifact in of_model]
        more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
        lines += wrapped([*names[:SHOWN], *more], "        ")
    return lines

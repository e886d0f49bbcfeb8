"""What the scripts that answer questions share: the config that Snakemake left for them, and tables."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from lib.graph import Artifact
from lib.plan import State
from lib.session import Session, UserError

NOTHING_FORCED = SimpleNamespace(forcerun=(), forcetargets=False, forceall=False, targets=())


def parser(doc: str) -> argparse.ArgumentParser:
    """The command line of such a script."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument(
        "--config", type=Path, required=True, help="the config as JSON, with its options"
    )
    return made


def open_session(config: Path, **options) -> Session:
    """The config's graph and plan, read in the working directory. Ends the program with a line where that fails."""
    try:
        raw = json.loads(config.read_text())
        return Session({**raw, **options}, lambda: NOTHING_FORCED, True)
    except (OSError, ValueError, *UserError) as error:
        sys.exit(str(error))


def chosen(session: Session) -> list[Artifact]:
    """What `--config target=…` names, by file or rule; without it what `snakemake` alone would build."""
    words = session.options.target
    if not words:
        return [made for made in session.plan.stale(session.graph) if not made.temporary]
    known = {path: made for made in everything(session) for path in made.outputs}
    rules = {made.rule for made in known.values()}
    found: dict[str, Artifact] = {}
    for word in words:
        path = str(Path(word))
        if word not in rules and path not in known:
            sys.exit(
                f"target: {word} is no rule that makes something, and no file that follows from the config"
            )
        for made in [known[path]] if path in known else known.values():
            if path in known or made.rule == word:
                found[made.path] = made
    return list(found.values())


def everything(session: Session) -> list[Artifact]:
    """All artifacts of the chosen models, and what they are made from, each after that."""
    found: dict[str, Artifact] = {}

    def visit(made: Artifact) -> None:
        if made.path not in found:
            for up in (*made.uses.values(), *made.inputs.values()):
                visit(up)
            found[made.path] = made

    for made in session.graph:
        visit(made)
    return list(found.values())


def is_built(session: Session, made: Artifact) -> bool:
    """Whether it is there as the config wants it, or was, and nothing needs it now."""
    return session.plan.state(made) is not State.STALE


def short(made: Artifact) -> str:
    """A path without results/MODEL/."""
    return made.path.removeprefix(f"results/{made.model}/") if made.model else made.path


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

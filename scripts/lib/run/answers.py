"""What the scripts that answer questions share: the config that Snakemake left for them, and tables."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

from lib.planning.graph import Artifact
from lib.planning.staleness import State
from lib.run.session import Session, UserError

SHOWN = 30  # files of one reason
NOTHING_FORCED = SimpleNamespace(forcerun=(), forcetargets=False, forceall=False, targets=())


def parser(doc: str, builds: bool = False) -> argparse.ArgumentParser:
    """The command line of such a script. builds: it starts a build of its own."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument(
        "--config", type=Path, required=True, help="the config as JSON, with its options"
    )
    if builds:
        made.add_argument("--snakefile", type=Path, required=True, help="of this workflow")
        made.add_argument("--cores", type=int, default=1, help="for the build")
    return made


def open_session(config: Path, **options) -> Session:
    """The config's graph and plan, read in the working directory. Ends the program with a line where that fails."""
    try:
        raw = json.loads(config.read_text())
        return Session({**raw, **options}, lambda: NOTHING_FORCED, True)
    except (OSError, ValueError, *UserError) as error:
        sys.exit(str(error))


def chosen(session: Session) -> list[Artifact]:
    """What `--config target=…` names, by file, rule or model; without it what `snakemake` alone would build."""
    words = session.options.target
    if not words:
        return [made for made in session.plan.stale(session.graph) if not made.temporary]
    known = {path: made for made in everything(session) for path in made.outputs}
    rules = {made.rule for made in known.values()}
    found: dict[str, Artifact] = {}
    for word in words:
        path = str(Path(word))
        if path in known:
            named = [known[path]]
        elif word in session.graph.names:
            named = list(session.graph.of(word).values())
        elif word in rules:
            named = [made for made in known.values() if made.rule == word]
        elif word == "all":
            named = list(session.graph)
        else:
            sys.exit(
                f"target: {word} is no model of the config, no rule that makes something, and no file that follows "
                "from the config"
            )
        found |= {made.path: made for made in named}
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


def listed(group: list[Artifact]) -> list[str]:
    """Paths, those of one model on shared lines."""
    lines, models = [], {}
    for made in group:
        models.setdefault(made.model, []).append(made)
    for model, of_model in models.items():
        if len(of_model) == 1:
            lines.append(f"    {of_model[0].path}")
            continue
        lines.append(f"    results/{model}/" if model else "    resources/")
        names = [short(made).removeprefix("resources/") for made in of_model]
        more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
        lines += wrapped([*names[:SHOWN], *more], "        ")
    return lines

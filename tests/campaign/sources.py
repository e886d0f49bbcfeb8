"""Files from outside that change while a build reads them, at random moments.

The weights of a model are replaced by another's, or overwritten in place, or cut off, or changed
and put back; lines are added to a text. Whatever the disturbed run says, the same command must then
give what an undisturbed build of the files that now lie there gives.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

from campaign import Case
from campaign.builds import Run, after, contents, failed, in_rounds, prepared, wait
from tiny_models import make_models

WEIGHTS, TEXT = "m/prose/model.safetensors", "data/evaluation.txt"


def cases(random: Random, work: Path) -> Iterator[Case]:
    new, as_it_was, seconds = prepared()
    make_models(work / "m", "code")
    other = (work / "m/code/model.safetensors").read_bytes()
    first, text = (new / WEIGHTS).read_bytes(), (new / TEXT).read_text()
    more = text + "One more line, which nobody had expected.\n" * 20
    with_other = built(new, work / "other", WEIGHTS, other)
    with_more = built(new, work / "more", TEXT, more.encode())

    def by_rename(here: Path) -> None:
        (here / "part").write_bytes(other)
        os.replace(here / "part", here / WEIGHTS)

    kinds = {
        "weights replaced": (by_rename, with_other),
        "weights overwritten in place": (lambda h: (h / WEIGHTS).write_bytes(other), with_other),
        "weights cut off": (lambda h: os.truncate(h / WEIGHTS, len(first) // 2), as_it_was),
        "weights changed and put back": (by_rename, as_it_was),
        "lines added to a text": (lambda h: (h / TEXT).write_text(more), with_more),
    }
    for number, kind in in_rounds(random, kinds):
        here, (change, expected) = work / f"run{number}", kinds[kind]
        shutil.copytree(new, here, symlinks=True)
        run = Run(here)
        wait(random, run, seconds)
        change(here)
        if kind == "weights changed and put back":
            wait(random, run, 2)
        fault = failed(run, here)
        if expected is as_it_was:
            (here / WEIGHTS).write_bytes(first)
        yield Case(kind, fault or after(here, expected))
        shutil.rmtree(here)


def built(new: Path, there: Path, file: str, content: bytes) -> dict[str, str]:
    """The contents of an undisturbed build, of the same but for one file."""
    shutil.copytree(new, there, symlinks=True)
    (there / file).write_bytes(content)
    run = Run(there)
    assert run.wait() is None and run.status == 0, run.output
    return contents(there)

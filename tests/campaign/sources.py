"""Files from outside that change while a build reads them, at random moments.

The weights of a model are replaced by another's, or overwritten in place, or cut off, or changed
and put back; lines are added to a text. Whatever the disturbed run says, the same command must then
give what an undisturbed build of the files that now lie there gives.
"""

import os
import shutil
from collections.abc import Iterator
from functools import cache
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
    whole = cache(lambda file, content: built(new, work / "whole" / file, file, content))

    def by_rename(here: Path) -> None:
        (here / "part").write_bytes(other)
        os.replace(here / "part", here / WEIGHTS)

    with_other, with_more = (WEIGHTS, other), (TEXT, more.encode())
    kinds = {  # what is done, and what lies there when the command is run again; None: as before
        "weights replaced": (by_rename, with_other),
        "weights overwritten in place": (lambda h: (h / WEIGHTS).write_bytes(other), with_other),
        "weights cut off": (lambda h: os.truncate(h / WEIGHTS, len(first) // 2), None),
        "weights changed and put back": (by_rename, None),
        "lines added to a text": (lambda h: (h / TEXT).write_text(more), with_more),
    }
    for number, kind in in_rounds(random, kinds):
        here, (change, left) = work / f"run{number}", kinds[kind]
        shutil.copytree(new, here, symlinks=True)
        run = Run(here)
        wait(random, run, seconds)
        change(here)
        if kind == "weights changed and put back":
            wait(random, run, 2)
        fault = failed(run, here)
        if not left:
            (here / WEIGHTS).write_bytes(first)
        yield Case(kind, fault or after(here, whole(*left) if left else as_it_was))
        shutil.rmtree(here)


def built(new: Path, there: Path, file: str, content: bytes) -> dict[str, str]:
    """The contents of an undisturbed build, of the same but for one file."""
    shutil.copytree(new, there, symlinks=True)
    (there / file).write_bytes(content)
    run = Run(there)
    assert run.wait() is None and run.status == 0, run.output
    return contents(there)

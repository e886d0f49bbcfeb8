"""A hub that changes and fails while models are locked and downloaded, and caches with wrong files.

The hub is the stand-in of tests/hub, on loopback. What is built in the end must be what an
undisturbed build of the locked commit gives, whatever the hub has done in between.
"""

import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import yaml

from campaign import Case
from campaign.builds import Run, after, contents, failed, in_rounds, succeeded, wait
from project import ROOT
from tiny_models import make_models

sys.path.insert(0, str(ROOT / "tests/hub"))
from hubtest import environment  # noqa: E402
from standin import Fault, Hub  # noqa: E402

NAME, LOCK = "acme/base", "config/sources.lock.yaml"
CONFIG = {"models": {"M": {"source": NAME, "gguf": {"imatrix": False, "quants": ["Q8_0"]}}}}
SECONDS = 8  # of a run with a download


class Place:
    """A working directory, the hub that it asks, and the user's cache of the hub."""

    def __init__(self, hub: Hub, top: Path, files: dict[str, bytes]):
        self.hub, self.here, self.home = hub, top / "work", top / "hf"
        self.here.mkdir(parents=True)
        (self.here / "c.yaml").write_text(yaml.safe_dump(CONFIG))
        self.repo = hub.add_repo(NAME, files)
        self.first = self.repo.branches["main"]
        self.how = {"variables": environment(hub, self.home), "anew": True}

    def run(self, *arguments: str) -> Run:
        return Run(self.here, *arguments, **self.how)

    @property
    def locked(self) -> str | None:
        """The commit that is locked."""
        try:
            lock = yaml.safe_load((self.here / LOCK).read_text())
        except FileNotFoundError:
            return None
        return lock["models"][NAME]["commit"]

    def blobs(self) -> list[Path]:
        """The files of the cache that have weights."""
        files = (path for path in self.home.rglob("blobs/*") if path.is_file())
        return [path for path in files if path.stat().st_size > 1_000_000]


def cases(random: Random, work: Path) -> Iterator[Case]:
    make_models(work / "m", "prose", "code")
    models = [
        {path.name: path.read_bytes() for path in (work / f"m/{name}").iterdir()}
        for name in ("prose", "code")
    ]
    expected = cache(lambda moved: undisturbed(work / f"whole{moved}", *models, moved))
    kinds = {
        "a branch that moves between lock and download": moves_after_lock,
        "a branch that moves at a random moment": moves,
        "a commit that is gone for a while": is_gone,
        "answers that fail, end early or have other bytes": answers,
        "a run that is killed while it downloads": killed,
        "a cache with a wrong file": wrong_file,
    }
    for number, name in in_rounds(random, kinds):
        with Hub() as hub:
            place = Place(hub, work / str(number), models[0])
            fault = kinds[name](random, place, models[1])
            if not fault:
                fault = succeeded(place.run())
            if not fault:
                made = expected(place.locked != place.first)
                fault = after(place.here, made, **place.how)
            yield Case(name, fault)
        shutil.rmtree(work / str(number))


def undisturbed(
    top: Path, files: dict[str, bytes], other: dict[str, bytes], moved: bool
) -> dict[str, str]:
    """The contents of an undisturbed build, of the first commit or the second."""
    with Hub() as hub:
        place = Place(hub, top, files)
        if moved:
            place.repo.commit("main", other)
        fault = succeeded(place.run())
        assert fault is None, fault
        return contents(place.here)


def moves_after_lock(random: Random, place: Place, other: dict[str, bytes]) -> str | None:
    if fault := succeeded(place.run("lock")):
        return fault
    place.repo.commit("main", other)
    return None if place.locked == place.first else "the lock has another commit"


def moves(random: Random, place: Place, other: dict[str, bytes]) -> str | None:
    run = place.run()
    wait(random, run, SECONDS)
    place.repo.commit("main", other)
    return succeeded(run)


def is_gone(random: Random, place: Place, other: dict[str, bytes]) -> str | None:
    if fault := succeeded(place.run("lock")):
        return fault
    run = place.run()
    wait(random, run, SECONDS)
    place.repo.commit("main", other)
    files = place.repo.commits.pop(place.first)
    fault = refused(run, place.here, NAME)
    place.repo.commits[place.first] = files
    return fault


def answers(random: Random, place: Place, other: dict[str, bytes]) -> str | None:
    for _ in range(random.randint(1, 4)):
        what = random.choice(
            [
                {"status": random.choice([404, 429, 500, 503])},
                {"cut": random.randint(0, 3_000_000), "reset": random.random() < 0.5},
                {"garble": True},
            ]
        )
        match = random.choice(["GET", "HEAD", "GET /cdn/", "/api/"])
        place.hub.faults.append(Fault(match, times=random.randint(1, 8), **what))
    fault = refused(place.run(), place.here, "")
    place.hub.faults.clear()
    return fault


def killed(random: Random, place: Place, other: dict[str, bytes]) -> str | None:
    run = place.run()
    wait(random, run, SECONDS)
    run.kill()
    return failed(run, place.here)


def wrong_file(random: Random, place: Place, other: dict[str, bytes]) -> str | None:
    """What is in the cache already is not what its name says."""
    if fault := succeeded(place.run()):
        return fault
    for name in ("results", "resources"):
        shutil.rmtree(place.here / name)
    (blob,) = place.blobs()
    whole = blob.read_bytes()
    at = random.randrange(len(whole))
    blob.write_bytes(
        random.choice(
            [
                whole[:at],
                whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
                other["model.safetensors"],
                b"",
            ]
        )
    )
    return refused(place.run(), place.here, "model.safetensors: ")


def refused(run: Run, here: Path, named: str) -> str | None:
    """Wait for a run that may fail; what is wrong unless it then says why, with this name."""
    if fault := failed(run, here):
        return fault
    if "Traceback" in run.output:
        return "a traceback"
    said = run.output.partition("FAILED")[2] or run.output
    return f"{named} is not named: {said[-300:]}" if run.status and named not in said else None

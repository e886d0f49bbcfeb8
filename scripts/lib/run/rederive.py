"""Make published files again, from what is published or from the sources, and compare the bytes."""

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lib.errors import UserError
from lib.hub.lock import LOCK_FILE, Loader
from lib.record import recipe as recipes
from lib.record.digests import sha256_of
from lib.record.layout import RUN_STATE
from lib.run.answers import build
from lib.run.scratch import BUILT, new_directory
from lib.trust.audit import Branch, where_again
from lib.trust.statements import Statement, behind, dependencies, recipe_of

ALL = "all"
OTHERWISE = "identical, but made otherwise than its statement says"
PUBLISHED = "published"  # where published files are linked, apart from all that is made
CONFIG, LOCK = "recipes/config.yaml", f"recipes/{LOCK_FILE.name}"


class Asked(NamedTuple):
    """A published file that is to be made again.

    branch, file: where it is published. sha256: hex. artifact: what it belongs to. path: where it
    lay when it was made, in the working directory. unlike: why this machine may give it other
    bytes, in words; "" if it may not.
    """

    branch: str
    file: str
    sha256: str | None
    artifact: str
    path: str
    unlike: str


@dataclass(frozen=True)
class Rederived:
    """A published file that was made again, or not. text: what came out, in words.

    unlike: it differs, as it may on another kind of machine.
    """

    branch: str
    file: str
    text: str
    different: bool = False
    unlike: bool = False


def rederive(
    found: dict[str, Branch], words: list[str], arguments: argparse.Namespace
) -> list[Rederived]:
    """Make files again, in a directory that is deleted if they come out the same.

    found: {name: branch} of a repository, checked. words: `all`, or forms. arguments: of a program
    that builds (lib/run/answers). Raises UserError if a word names nothing, or the build fails.
    """
    main = found["main"]
    if CONFIG not in main.hashes:
        raise UserError(f"rederive: there is no {CONFIG}, so nothing says how it was built")
    config = read_config(main.open(CONFIG))
    chain = words == [ALL]
    # What lies here may be a source that the config names. It has its lock beside it.
    links = [path for path in Path.cwd().iterdir() if path.name not in {*BUILT, "config"}]
    scratch = new_directory("audit", links if chain else [])
    if chain:
        compared = list(from_sources(found, scratch))
    else:
        compared = list(from_published(main, config, words, scratch))
    # Not in `scratch`, where a link to a file of the same name may lie.
    file = Path.cwd() / RUN_STATE / "audit.json"
    file.write_text(json.dumps(config | {"skip": [], "reclaim": []}))
    targets = sorted({each.artifact for each in compared})
    more = ("--directory", scratch, "--notemp", "--keep-going", *targets)
    if not build(arguments, file, *more, takes=False):
        print(f"The build did not finish; see {scratch}.")
    rows = []
    for each in compared:
        as_said = is_made_as_said(each.artifact, found[each.branch].provenances, scratch, chain)
        rows.append(compare(each, scratch, as_said))
    if not any(row.different for row in rows):
        shutil.rmtree(scratch)
    return rows


def read_config(file: Path) -> dict[str, Any]:
    """The published config, as far as it is taken from a stranger: texts and models.

    Raises UserError if it is none, or asks for pickled weights, which can run code.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader)):
            raise ValueError("a few lines with aliases can stand for more than any memory holds")
        said = yaml.load(text, Loader)
        config = {key: dict(said.get(key) or {}) for key in ("corpora", "models")}
        config = json.loads(json.dumps(config))
        pickled = [name for name, model in config["models"].items() if model.get("allow_pickle")]
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        raise UserError(f"rederive: {CONFIG} is no config") from None
    if pickled:
        text = f"takes pickled weights for {pickled[0]}, which can run code"
        raise UserError(f"rederive: {CONFIG} {text}; build it yourself if you trust it")
    return config


def from_sources(found: dict[str, Branch], scratch: Path) -> Iterator[Asked]:
    """Yield all attested files; put the published lock into `scratch`, for building them."""
    main = found["main"]
    if LOCK in main.hashes:
        (scratch / LOCK_FILE).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(main.open(LOCK), scratch / LOCK_FILE)
    for name, branch in found.items():
        for file in branch.hashes:
            if known := branch.made(file):
                unlike = where_again(known[0], branch.provenances, chain=True)
                yield Asked(name, file, branch.digest(file), *known, unlike)


def from_published(
    main: Branch, config: dict[str, Any], forms: list[str], scratch: Path
) -> Iterator[Asked]:
    """Yield quants; prepare `scratch` for making them from the published files that they are of.

    `config` is changed: the published conversion is the model's source, the matrix its own.
    """
    by_digest = {main.digest(name): name for name in main.hashes}
    models: dict[str, dict[str, Any]] = {}
    for form in forms:
        asked = find(main, form)
        steps = main.provenances[asked.artifact]["predicate"]["buildDefinition"]
        if (step := steps["externalParameters"]["step"]) != "quantize":
            raise UserError(f"rederive: {asked.file} is made by {step}; `all` makes that again")
        taken = {}
        for role, each in dependencies(main.provenances[asked.artifact], "input"):
            name = by_digest.get((each.get("digest") or {}).get("sha256"))
            if name is None or role not in ("gguf", "imatrix"):
                text = f"{asked.file} is made from {each.get('uri')}, which is not published"
                raise UserError(f"rederive: {text}; `all` makes it again")
            if main.hashes[name] is None:
                text = f"{asked.file} is made from {name}: put that into target=… too"
                raise UserError(f"rederive: {text}")
            taken[role] = f"./{PUBLISHED}/{name}"
            place = scratch / PUBLISHED / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.symlink_to(os.path.realpath(main.open(name)))
        model = asked.artifact.split("/")[1]
        try:
            listed = config["models"][model]["gguf"]["quants"]
            quants = [quant for quant in listed if called(quant) == form]
        except (KeyError, TypeError, AttributeError):
            quants = []
        if not quants or "gguf" not in taken:
            raise UserError(f"rederive: {CONFIG} does not say how {asked.file} is made")
        section = {"imatrix": {"file": taken["imatrix"]}} if "imatrix" in taken else {}
        made = models.setdefault(model, {"source": taken["gguf"], "gguf": {"quants": []}})
        made["gguf"] |= section
        made["gguf"]["quants"] += quants
        yield asked
    config |= {"models": models, "corpora": {}}


def called(quant: Any) -> str:
    """The name of a quant of the config."""
    return quant if isinstance(quant, str) else str(quant.get("name") or quant.get("type"))


def find(main: Branch, form: str) -> Asked:
    """The published file of a form. Raises UserError if there is none."""
    for file in main.hashes:
        if (known := main.made(file)) and file.endswith(f"-{form}.gguf"):
            unlike = where_again(known[0], main.provenances)
            return Asked("main", file, main.digest(file), *known, unlike)
    raise UserError(f"rederive: no published file is called …-{form}.gguf")


def is_made_as_said(artifact: str, known: dict[str, Statement], scratch: Path, chain: bool) -> bool:
    """Whether an artifact was made again as its statement says, which the config need not say.

    known: {path: provenance}. chain: all that it is made from, too.
    """
    for path, statement in behind(artifact, known):
        said, record = recipes.normalise(recipe_of(statement)), recipes.read(path, scratch)
        if record is None:
            return False
        made = recipes.normalise(record.recipe)
        if any(said[key] != made[key] for key in ("step", "options", "sources")):
            return False
        if said["inputs"].keys() != made["inputs"].keys():
            return False
        if not chain:
            break
    return True


def compare(asked: Asked, scratch: Path, as_said: bool) -> Rederived:
    """What came out of a file that was made again in `scratch`. as_said: `is_made_as_said`."""
    made = scratch / asked.path
    if not made.is_file():
        return Rederived(asked.branch, asked.file, "not made", different=True)
    if sha256_of(made) != asked.sha256 and asked.unlike:
        text = f"not comparable here: {asked.unlike}"
        return Rederived(asked.branch, asked.file, text, unlike=True)
    if sha256_of(made) != asked.sha256:
        return Rederived(asked.branch, asked.file, f"different: see {made}", different=True)
    if not as_said:
        return Rederived(asked.branch, asked.file, OTHERWISE, different=True)
    return Rederived(asked.branch, asked.file, "identical")

"""Read the config: `load` returns a validated Config, or raises one error with all mistakes."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lib.config.checks import Checks
from lib.config.merge_files import ADDED, KEYS, read_merge_files
from lib.config.schema import WITH_SECTIONS, Config, Options, section_at
from lib.config.studies import all_waiting, take_winners
from lib.errors import UserError
from lib.keys import bounds
from lib.keys.section import Section
from lib.keys.values import show, suggestion
from lib.stages.quantize import INVALID
from lib.studies import lock

KeyPath = tuple[Any, ...]
# Entries of pydantic's paths that are no keys: the tags of discriminated unions (lib/stages/gguf).
TAGS = ("<imatrix>", "<false>")
# Pydantic's names for a key that is not text; it writes such a key into the path differently.
WRONG_KEY = ("string_type", "invalid_key")


def load(raw: Mapping[str, Any], workdir: Path) -> tuple[Config, Options]:
    """Read and check the config and the options of `--config`.

    raw: the mapping that Snakemake gives. workdir: the directory of relative paths. Raises
    UserError with every problem found, in the order of the config.
    """
    bounds.insist(raw)
    models, origins = read_merge_files(raw.get("models"), Path(workdir))
    bounds.insist({"models": models})
    chosen = lock.read(workdir)
    models, taken, takes = take_winners(models, raw.get("studies"), chosen)
    waiting = {name: study for name, study in takes.items() if name not in taken}
    origins |= taken
    if "models" in raw:
        raw = {**raw, "models": models}
    problems = Problems(raw, origins)
    given = {key: value for key, value in raw.items() if key in Options.model_fields}
    settings = {key: value for key, value in raw.items() if key not in given}
    options = _parse(Options, given, problems)
    config = _parse(Config, settings, problems)
    config._chosen, config._takes = chosen, takes
    config._waiting = all_waiting(config.models, config.studies, waiting)
    for path, message in Checks(config, settings, Path(workdir)).run():
        problems.add(path, message)
    for name in options.model:
        if isinstance(models, Mapping) and name not in models and name not in config.studies:
            near = suggestion(name, config.entries)
            problems.add(("model",), f"{show(name)} is no model of this config{near}")
    if problems.found:
        raise UserError(*problems.lines())
    return config, options


class Problems:
    """Collects mistakes with their key paths.

    raw: the config, for the order of its keys. origins: {model: the place of its merge's file}, for
    merges that are in files of their own.
    """

    def __init__(self, raw: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        self.raw, self.origins = raw, origins
        self.found: list[tuple[KeyPath, str]] = []

    def add(self, path: KeyPath, message: str) -> None:
        """Note a mistake, once. One that a document takes over is noted at its file's model."""
        if self._is_document(path) and len(path) > 2 and path[2] != "merge":
            return  # the key is the file's model's, which reports it
        if (path, message) not in self.found:
            self.found.append((path, message))

    def lines(self) -> list[str]:
        """One line a problem, in the order of the config's keys."""
        located = [(*self._locate(path), path, message) for path, message in self.found]
        located.sort(key=lambda entry: entry[0])
        return [
            f"{self._in_file(path, spelled)}: {' '.join(message.split())}"
            for _, spelled, path, message in located
        ]

    def _in_file(self, path: KeyPath, spelled: str) -> str:
        """The name of a place: its keys in the config, or a merge's file and the keys in it."""
        if path[:1] != ("models",) or len(path) < 2 or path[1] not in self.origins:
            return spelled
        if path[2:3] not in KEYS and not self._is_document(path):
            return spelled  # stands in the config, beside the file's name
        origin, depth = self.origins[path[1]], 3 if path[2:3] in KEYS else 2
        _, outside = self._locate(path[:depth])
        inside = spelled[len(outside) :].removeprefix(".")
        return f"{origin}: {inside}" if inside else origin

    def _is_document(self, path: KeyPath) -> bool:
        """Whether the path is of a model that a named document of a merge's file has added."""
        return len(path) > 1 and path[0] == "models" and ADDED in self.origins.get(path[1], "")

    def _locate(self, path: KeyPath) -> tuple[list[int], str]:
        """A key path's position in the config, for sorting, and the path as text."""
        place: list[int] = []
        spelled = ""
        value: Any = self.raw
        for key in path:
            if isinstance(value, list | tuple) and isinstance(key, int):
                spelled += f"[{key}]"
                place.append(key)
                value = value[key]
                continue
            if isinstance(key, int) and not isinstance(value, Mapping | None):
                continue  # a single entry that stands for a list of one
            plain = isinstance(key, str) and re.fullmatch(r"[^\s:\[\]'\"]+", key)
            spelled += ("." if spelled else "") + (key if plain else repr(key))
            if isinstance(value, Mapping) and key in value:
                place.append(list(value).index(key))
                value = value[key]
            else:
                value = None
        return place, spelled or "config"


def _parse(model: type[Section], raw: dict[str, Any], problems: Problems) -> Any:
    """Validate a section. Invalid parts are noted and left out; the rest can still be checked."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    for fault in faults:
        problems.add(*_explain(model, fault, _key_path(fault)))
    rest = copy.deepcopy(raw)
    # A section may be invalid without the key that was left out: then the section is left out too,
    # and so on upwards.
    for _ in range(8):
        for fault in faults:
            path = _key_path(fault)
            _leave_out(rest, path[:-1] if fault["type"] == "missing" else path)
        try:
            return model.model_validate(rest)
        except ValidationError as error:
            faults = error.errors(include_url=False)
    return model()


def _key_path(fault: Mapping[str, Any]) -> KeyPath:
    path = tuple(key for key in fault["loc"] if key not in (*TAGS, "[key]"))
    return (*path[:-1], fault["input"]) if fault["type"] in WRONG_KEY else path


def _leave_out(tree: dict[str, Any], path: KeyPath) -> None:
    """Remove the key at the path. A path into a list removes the list; of `quants`, one entry."""
    if not path:
        tree.clear()
        return
    for depth, key in enumerate(path[:-1]):
        following = tree.get(key)
        if key == "quants" and isinstance(following, list):  # which are reported by number
            following[path[depth + 1]] = {"type": "COPY", "name": INVALID}
            return
        if not isinstance(following, dict):  # a list, or an entry that stands for a list of one
            tree.pop(key, None)
            return
        tree = following
    tree.pop(path[-1], None)


def _explain(model: type[Section], fault: Mapping[str, Any], path: KeyPath) -> tuple[KeyPath, str]:
    """(key path, message) of one of pydantic's errors, in the words of the config."""
    kind, got = fault["type"], fault["input"]
    if kind == "value_error":
        return path, str(fault["ctx"]["error"])
    if kind == "missing":
        return path[:-1], f"{path[-1]} is missing"
    if kind == "extra_forbidden":
        return path, _unknown_key(model, path)
    if kind in WRONG_KEY:
        return path, f"the key {show(path[-1])} is not text; write it in quotes"
    if kind == "list_type":
        return path, f"must be a list, not {show(got)}"
    return path, f"{show(got)} does not fit here: {fault['msg']}"


def _unknown_key(model: type[Section], path: KeyPath) -> str:
    if len(path) == 1 and path[0] in WITH_SECTIONS:
        family = path[0]
        return f"belongs under a model; --config skip={family} leaves all {family} out of a run"
    known = list(section_at(model, path[:-1]).model_fields)
    options = [key for key in Options.model_fields if model is Config and len(path) == 1]
    listed = ", ".join(known)
    if options:
        listed += f"; with --config also {', '.join(options)}"
    near = suggestion(path[-1], known) or suggestion(path[-1], options)
    return f"no such key{near} (known: {listed})"

"""Read merges that are in files of their own into the config.

A file holds one mergekit configuration, or several documents as mergekit-multi (0.1.5) takes them.
A document with a `name` becomes a model of the config with that name, which others may merge.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lib.config.absent import absent
from lib.formats.merge_references import substitute_references
from lib.keys.values import TILDE, show

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Part of the origin of each model that a document adds.
ADDED = ": document "
# Keys that such a model takes over: mergekit-multi, too, has one set of options for all.
SHARED = ("random_seed", "allow_pickle")
# The keys of a model that may name a file, as key paths below the model.
KEYS = (("merge",), ("moe",))


class MergeFileError(ValueError):
    """A file cannot be used as a merge; the message is one line with the reason."""


def read_merge_files(models: Any, workdir: Path) -> tuple[Any, dict[str, str]]:
    """Replace file names under `merge` and `moe` in the config's `models` by what is in the files.

    workdir: the directory of relative paths. Returns the models, and {model: the place of its
    merge, for messages} for the merges from files. If a file cannot be used, the key gets a
    MergeFileError as its value.
    """
    if not isinstance(models, Mapping):
        return models, {}
    expanded: dict[Any, Any] = {}
    origins: dict[str, str] = {}
    for name, model in models.items():
        if isinstance(model, Mapping) and isinstance(model.get("moe"), str):
            found = _read_moe(model["moe"], workdir)
            if not isinstance(found, MergeFileError):
                origins[name] = f"models.{name}.moe: {model['moe']}"
            model = {**model, "moe": found}
        file = model.get("merge") if isinstance(model, Mapping) else None
        if not isinstance(file, str):
            expanded[name] = model
            continue
        try:
            own, added = _by_name(name, file, _documents(file, workdir))
            for other in added:
                if other in models or other in expanded:
                    why = "is named as another model of the config"
                    raise MergeFileError(f"{file}: its document {other} {why}; rename one of them")
        except MergeFileError as error:
            expanded[name] = {**model, "merge": error}
            continue
        shared = {key: model[key] for key in SHARED if key in model}
        for other, merge in added.items():
            expanded[other] = {"merge": merge, **shared}
            origins[other] = f"models.{name}.merge: {file}{ADDED}{other}"
        expanded[name] = {**model, "merge": own}
        origins[name] = f"models.{name}.merge: {file}"
    return expanded, origins


def _read_moe(file: str, workdir: Path) -> dict[Any, Any] | MergeFileError:
    """The configuration of mergekit-moe in a file, or what is wrong with the file."""
    try:
        documents = _documents(file, workdir)
    except MergeFileError as error:
        return error
    if len(documents) > 1:
        return MergeFileError(f"{file}: it has {len(documents)} documents; a mixture is one")
    return documents[0]


def _documents(file: str, workdir: Path) -> list[dict[Any, Any]]:
    if file.startswith("~"):
        raise MergeFileError(f"{show(file)}: {TILDE}")
    path = os.path.join(workdir, file)
    if not os.path.isfile(path):
        hint = "a merge is a mapping or the name of a mergekit file"
        raise MergeFileError(f"{absent('file', file, workdir)}; {hint}")
    try:
        text = Path(path).read_text(encoding="utf-8")
        documents = [entry for entry in yaml.load_all(text, Loader) if entry is not None]
    except OSError as error:
        raise MergeFileError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MergeFileError(f"{file}: not a text file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        why = getattr(error, "problem", None) or str(error)
        raise MergeFileError(f"{file}: not YAML: {' '.join(why.split())}{line}") from None
    if not documents:
        raise MergeFileError(f"{file}: it is empty")
    for number, document in enumerate(documents, 1):
        if not isinstance(document, Mapping):
            which = f"its document {number}" if len(documents) > 1 else "it"
            wanted = "a mapping with the keys of a mergekit configuration"
            raise MergeFileError(f"{file}: {which} is {show(document)}, not {wanted}")
    return documents


def _by_name(
    model: str, file: str, documents: list[dict[Any, Any]]
) -> tuple[dict[Any, Any], dict[str, dict[Any, Any]]]:
    """Split a file's documents: the model's own one, and {name: document} of the others.

    The model's own is the one without a name, else the last one. Raises MergeFileError.
    """
    unnamed = [document for document in documents if document.get("name") is None]
    if len(unnamed) > 1:
        found = f"{len(unnamed)} of its documents have no name"
        raise MergeFileError(f"{file}: {found}; only one may be the model itself")
    own = unnamed[0] if unnamed else documents[-1]
    named: dict[str, dict[Any, Any]] = {}
    for document in documents:
        name = document.pop("name", None)
        if document is own:
            alias = name
            continue
        if not isinstance(name, str):
            raise MergeFileError(f"{file}: the name {show(name)} is not text; write it in quotes")
        if name in named:
            raise MergeFileError(f"{file}: two of its documents are named {name}")
        named[name] = document
    if isinstance(alias, str):  # what the others call the model itself
        if alias in named:
            raise MergeFileError(f"{file}: two of its documents are named {alias}")
        names = {alias: model}
        named = {name: substitute_references(other, names) for name, other in named.items()}
        own = substitute_references(own, names)
    return own, named

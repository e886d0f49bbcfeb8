"""The checks that schema.py cannot make: do keys, models and files of a config fit together?"""

import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lib.config import studies
from lib.config.absent import absent
from lib.config.merges import check_merge, check_parameters
from lib.config.moes import check_moe, is_sound
from lib.config.repositories import repositories
from lib.config.schema import (
    BY_FORM,
    PUBLISHED,
    WITH_SECTIONS,
    Config,
    Corpus,
    LlamaCpp,
    Model,
)
from lib.errors import UserError, has_secret
from lib.formats import moe_architectures, soundness, task_files
from lib.formats.corpora import fault
from lib.formats.merge_references import (
    MODEL_NAME,
    TOKENIZER_WORDS,
    Reference,
    as_mapping,
    merge_references,
    reference_kind,
)
from lib.formats.soundness import EXPERT_COUNTS
from lib.keys.values import TILDE, show, suggestion
from lib.record.contents import STORE, Contents
from lib.record.interpreter import installed_versions
from lib.record.layout import STUDIES
from lib.record.tools import CONVERTER, LLAMA_TOOLS, own_tool
from lib.stages import demo, evaluation, moe, similarity
from lib.stages.environments import needed
from lib.stages.family import Family
from lib.stages.quantize import INVALID
from lib.studies.lock import Chosen

KeyPath = tuple[Any, ...]
SHARD_NAME = re.compile(r"-\d{5}-of-\d{5}$")
SUFFIXES = (".txt", ".parquet")
LONGEST_NAME = 96


class Checks:
    """One pass over a config.

    raw: the mapping that the config was made from; it also has the parts that were left out because
    they are invalid. workdir: the directory of relative paths.
    """

    def __init__(self, config: Config, raw: Mapping[str, Any], workdir: Path) -> None:
        self.config = config
        self.corpora = as_mapping(raw.get("corpora"))
        self.models = as_mapping(raw.get("models"))
        self.no_models = raw.get("models") in (None, {})
        self.workdir = str(workdir)
        self.found: list[tuple[KeyPath, str]] = []

    def run(self) -> list[tuple[KeyPath, str]]:
        """Make all checks. Returns (key path, message) of every problem."""
        if self.no_models and not self.config.studies:
            self.add(("models",), "names no model: there is nothing to build")
        if self.config.llama_cpp.path is not None:
            self._llama_cpp(self.config.llama_cpp)
        for name, python in self.config.environments.items():
            self._interpreter(("environments", name), name, python)
        self.names(("corpora",), self.corpora)
        for name, corpus in self.config.corpora.items():
            self._corpus(("corpora", name), name, corpus)
        self.names(("models",), self.models)
        for name, model in self.config.models.items():
            self._model(("models", name), name, model)
        self.names(("studies",), self.config.studies)
        for name, study in self.config.studies.items():
            if name in self.models:
                self.add(("studies", name), "is the name of a model too; choose another name")
            studies.check(self, name, study)
        self._cycles()
        self._repositories()
        return self.found

    def add(self, at: KeyPath, message: str) -> None:
        """Report a problem of the key at this path."""
        self.found.append((at, message))

    # files and directories

    def place(self, path: str) -> Path:
        """A path of the config as one that can be opened."""
        return Path(self._place(path))

    @cached_property
    def _contents(self) -> Contents:
        return Contents(Path(self.workdir) / STORE)

    def _place(self, path: str) -> str:
        return os.path.join(self.workdir, path)

    def file(self, at: KeyPath, path: str) -> None:
        """Report a path that is no file. The demo's files count as there: a run makes them."""
        if path.startswith("~"):
            self.add(at, f"{show(path)}: {TILDE}")
        elif is_demo(path) or os.path.isfile(self._place(path)):
            return
        elif os.path.isdir(self._place(path)):
            self.add(at, f"{show(path)} is a directory, not a file")
        else:
            self.add(at, absent("file", path, self.workdir))

    def _text(self, at: KeyPath, path: str) -> None:
        """Report a path that is no file, or a file without text in it."""
        self.file(at, path)
        place = Path(self._place(path))
        if path.endswith(SUFFIXES) and not is_demo(path) and place.is_file():
            try:
                wrong = fault(place)
            except OSError as error:
                wrong = f"cannot be read: {error.strerror}"
            if wrong:
                self.add(at, f"{show(path)} {wrong}; name a file with text in it")

    def task_file(self, at: KeyPath, path: str, kind: str) -> None:
        """Report a path that is no file, or no file of tasks of this kind."""
        self.file(at, path)
        place = Path(self._place(path))
        if place.is_file():
            wrong = self._contents.remembered(
                str(place), kind, lambda: task_files.fault(place, kind)
            )
            self._contents.save()
            if wrong:
                self.add(at, f"{show(path)} {wrong}")

    def _llama_cpp(self, section: LlamaCpp) -> None:
        at, place = ("llama_cpp", "path"), self._place(section.path)
        if section.path.startswith("~"):
            self.add(at, f"{show(section.path)}: {TILDE}")
        elif not os.path.isdir(place):
            self.add(at, absent("directory", section.path, self.workdir))
        elif missing := [tool for tool in (*LLAMA_TOOLS, CONVERTER) if not own_tool(place, tool)]:
            self.add(at, f"{section.path} has no {', '.join(missing)}")
        for key in ("cuda", "portable"):
            if key in section.model_fields_set:
                message = "has no effect together with path, which is built already"
                self.add(("llama_cpp", key), message)

    def _interpreter(self, at: KeyPath, name: str, python: str) -> None:
        """Report what is no interpreter with the packages that its tool needs."""
        before = len(self.found)
        self.file(at, python)
        if len(self.found) > before:
            return
        place = Path(self._place(python))
        usual = place.with_name("python")
        if not os.access(place, os.X_OK):
            self.add(at, f"{show(python)} may not be executed")
        elif place.parent.name != "bin" or not usual.exists() or not place.samefile(usual):
            self.add(at, f"{show(python)} is not bin/python of an environment")
        else:
            try:
                installed_versions(python, needed(name))
            except UserError as error:
                self.add(at, f"{error}; envs/{name}.txt has what is needed")

    # names

    def names(self, at: KeyPath, names: Iterable[Any]) -> None:
        """Report names that cannot be part of file names, or differ in case alone."""
        seen: dict[str, str] = {}
        for name in names:
            if not isinstance(name, str):
                continue  # reported by the models
            self.name((*at, name), name)
            first = seen.setdefault(name.lower(), name)
            if first != name:
                self.add((*at, name), f"differs from {first} only in upper and lower case")

    def name(self, at: KeyPath, name: str) -> None:
        """Report a name that cannot be part of file names."""
        if not MODEL_NAME.fullmatch(name):
            rule = "letters, digits and . _ - only, the first a letter or digit"
            self.add(at, f"{show(name)} is no safe file name: {rule}")
        elif len(name) > LONGEST_NAME:
            self.add(at, f"the name is longer than {LONGEST_NAME} characters")
        elif name.lower().endswith((".json", ".gguf", ".recipe", ".")):
            self.add(at, f"{show(name)} ends as other files do; choose another name")

    # corpora

    def _corpus(self, at: KeyPath, name: str, corpus: Corpus) -> None:
        own = [f.own_corpora[name] for f in WITH_SECTIONS.values() if name in f.own_corpora]
        if own:
            self.add(at, f"the name stands for {' and '.join(own)}; choose another")
        raw = as_mapping(self.corpora[name])
        given = {key for key in Corpus.model_fields if raw.get(key) is not None}
        origins = [key for key in ("path", "url", "hub") if key in given]
        if len(origins) != 1:
            got = " and ".join(origins) or "none of them"
            self.add(at, f"exactly one of path, url and hub must be given, not {got}")
            return
        for key, owner in (("sha256", "url"), ("file", "hub"), ("revision", "hub")):
            if key in given and owner not in given:
                self.add((*at, key), f"belongs to {owner}, which is not given")
            elif owner in given and key not in given and key != "revision":
                self.add(at, f"{owner} needs {key} besides")
        if corpus.path is not None:
            self._text((*at, "path"), corpus.path)
        if corpus.url is not None and has_secret(corpus.url):
            why = "its address has a secret, which recipes and command lines would show"
            self.add((*at, "url"), f"{why}: download it, and name it as `path`")
        if corpus.url is not None and not corpus.url.startswith(("https://", "http://")):
            self.add((*at, "url"), f"{show(corpus.url)} is no http or https address")
        file, key = corpus.origin(), "file" if corpus.hub else origins[0]
        if file and not file.endswith(SUFFIXES):
            self.add((*at, key), f"{show(file)} is neither .txt nor .parquet")

    def uses_corpus(self, at: KeyPath, name: str) -> None:
        """Report the name of a text that `corpora` does not have."""
        if name not in self.corpora:
            known = [key for key in self.corpora if isinstance(key, str)]
            near, listed = suggestion(name, known), ", ".join(known) or "none"
            self.add(at, f"{show(name)} is not in corpora{near} (there are: {listed})")

    # models

    def _model(self, at: KeyPath, name: str, model: Model) -> None:
        raw = as_mapping(self.models[name])
        if name.lower() == STUDIES:
            self.add(at, f"results/{STUDIES} has the studies; choose another name")
        if name in TOKENIZER_WORDS:
            self.add(at, f"{name} is a word of mergekit's tokenizer_source; choose another name")
        given = [key for key in ("merge", "moe", "source") if raw.get(key) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            self.add(at, f"exactly one of merge, moe and source must be given, not {got}")
        if model.source is not None and is_gguf_file(model.source):
            self._gguf_source(at, model)
        elif model.source is not None:
            self._source((*at, "source"), model.source)
        if model.merge is not None:
            self._merge((*at, "merge"), model)
        if model.moe is not None:
            self._moe((*at, "moe"), model)
        if model.similarity is not None:
            similarity.check(self, (*at, "similarity"), name, model)
        for family in model.families():
            family.check(self, (*at, family.name), name, model)
        self._forms(at, model)
        if model.evaluate is not None:
            measured = [key for key, family in WITH_SECTIONS.items() if family.makes_forms]
            if not set(measured) & raw.keys():
                none = f"there is neither {' nor '.join(measured)} to evaluate"
                self.add((*at, "evaluate"), none)
            self.uses_corpus((*at, "evaluate", "corpus"), model.evaluate.corpus)
            evaluation.check(self, (*at, "evaluate"), model)
            for number, text in enumerate(also := model.evaluate.also):
                self.uses_corpus((*at, "evaluate", "also", number), text)
                if text in (model.evaluate.corpus, *also[:number]):
                    self.add((*at, "evaluate", "also", number), f"{text} is measured already")
        if model.publish is not None:
            self._publish((*at, "publish"), raw, model)

    def _source(self, at: KeyPath, source: str) -> None:
        if source in self.models:
            wanted = "source is a directory (./x or /x) or a hub id"
            self.add(at, f"{show(source)} is a model of this config, and {wanted}")
        elif source.endswith(".gguf") and os.path.isfile(self._place(source)):
            self.add(at, f"{show(source)} is a file here: write ./{source}")
        else:
            self.reference(at, source, "config.json")

    def _gguf_source(self, at: KeyPath, model: Model) -> None:
        """Read a GGUF file that is a model's source, and report what cannot be made of it.

        `publish.safetensors` is not checked here: `_publish` refuses it for all but merges.
        """
        from lib.formats.gguf_source import GgufSource, describe

        path = self._place(model.source)
        self.file((*at, "source"), model.source)
        if os.path.isfile(path):
            try:
                found = self._contents.remembered(path, "gguf", lambda: describe(Path(path)))
                self._contents.save()
                model._own_gguf = GgufSource(*found)
            except (UserError, OSError) as error:
                self.add((*at, "source"), str(error).replace(str(Path(path)), model.source))
        for key in ("allow_pickle", *WITH_SECTIONS):
            family = WITH_SECTIONS.get(key)
            if getattr(model, key) and (family is None or family.needs_safetensors):
                message = f"needs safetensors, and source is the GGUF file {model.source}"
                self.add((*at, key), message)

    def reference(self, at: KeyPath, text: str, needed: str) -> None:
        """Report a reference to no model. needed: a file that a model directory must have."""
        kind = reference_kind(text)
        source = self.config.models[text].source if text in self.config.models else text
        if source and is_gguf_file(source):
            which = f"{source}, " * (source != text)
            self.add(at, f"{show(text)} is {which}a GGUF file, and merges need safetensors")
            return
        if kind == "model" and text in self.models:
            return
        if kind == "directory":
            if not is_demo(text) and not os.path.isdir(self._place(text)):
                self.add(at, absent("directory", text, self.workdir))
            elif not is_demo(text) and not os.path.isfile(self._place(f"{text}/{needed}")):
                self.add(at, f"{show(text)} has no {needed}, so it is no model directory")
            elif not is_demo(text):
                self._sound(at, text, self.config.entries[at[1]].allow_pickle)
        elif kind == "hub":
            if "@" not in text and os.path.isdir(self._place(text)):
                choice = f"write ./{text} for the directory, {text}@main for the hub"
                self.add(at, f"{show(text)} is a directory here and may be a hub id too: {choice}")
        elif text.startswith("~"):
            self.add(at, f"{show(text)}: {TILDE}")
        else:
            near = suggestion(text, [name for name in self.models if isinstance(name, str)])
            merges = at[2] != "source"
            wanted = "a model of this config, " * merges + "a directory (./x or /x) nor a hub id "
            wanted += "(org/name or org/name@revision)"
            self.add(at, f"{show(text)} is neither {wanted}{near if merges else ''}")

    def _sound(self, at: KeyPath, text: str, allow_pickle: bool) -> None:
        """Report what is no whole model, or has a file that is not what it says."""
        found: list[str] = []
        try:
            files = soundness.files(place := Path(self._place(text)), allow_pickle)
            for file in files:
                try:
                    ask = partial(soundness.check_file, file)
                    self._contents.remembered(str(file), "sound", ask)
                except UserError as error:
                    found += error.lines
            self._contents.save()
        except UserError as error:
            found = error.lines
        except OSError as error:
            found = [f"{error.filename}: {error.strerror}"]
        for line in found:
            self.add(at, line.replace(str(place), text))

    def reference_mistakes(
        self, at: KeyPath, merge: Mapping[str, Any]
    ) -> list[tuple[KeyPath, str]]:
        """(key path below `at`, message) of each reference of a merge that leads nowhere."""
        before = len(self.found)
        self._references(at, merge_references(merge))
        self.found, mistakes = self.found[:before], self.found[before:]
        return [(where[len(at) :], message) for where, message in mistakes]

    def _merge(self, at: KeyPath, model: Model) -> None:
        parameters = check_parameters(model.merge, others=True)
        for where, message in (*check_merge(model.merge), *parameters):
            self.add((*at, *where), message)
        self._references(at, model.made_from())

    def _references(self, at: KeyPath, references: Iterable[Reference]) -> None:
        for reference in references:
            here = (*at, *reference.where)
            if len(reference.parts) > 2:
                self.add(here, "only one adapter can be added to a model: model+adapter")
            for index, part in enumerate(reference.parts):
                self.reference(here, part, "adapter_config.json" if index else "config.json")

    def _moe(self, at: KeyPath, model: Model) -> None:
        for where, message in check_moe(model.moe):
            self.add((*at, *where), message)
        found = len(self.found)
        for reference in model.made_from():
            here = (*at, *reference.where)
            if len(reference.parts) > 1:
                text = "mergekit-moe takes no adapters; merge model+adapter first, and name that"
                self.add(here, text)
            for part in reference.parts[:1]:
                self.reference(here, part, "config.json")
        if len(self.found) > found or not is_sound(model.moe):
            return
        configs = [config for part in model.parts() if (config := self._config_of(part))]
        wrong = moe.fault(model.moe, configs, model.conversion is not None) if configs else None
        if wrong:
            self.add(at, wrong)

    def _cycles(self) -> None:
        """Report merges that are made of themselves, through other merges or through studies."""
        made = [name for name, model in self.config.models.items() if model.is_made]
        parents = {name: self._made_of(name) for name in [*made, *self.config.studies]}
        done: set[str] = set()

        def follow(trail: list[str]) -> None:
            for part in parents.get(trail[-1], ()):
                if part in trail:
                    circle = trail[trail.index(part) :]
                    message = f"the merges go round in a circle: {' -> '.join([*circle, part])}"
                    self.add(self._turn(circle), message)
                elif part not in done:
                    follow([*trail, part])
            done.add(trail[-1])

        for name in parents:
            if name not in done:
                follow([name])

    def _made_of(self, name: str) -> list[str]:
        """The models that a model or a study is merged from, and the study that a model takes."""
        config = self.config
        study = config.takes.get(name)
        if study and not config.chosen.get(study, Chosen()).winner:
            return [study]
        try:
            parts = config.entries[name].parts()
        except ValueError:  # a study that is reported
            parts = []
        return [*(part for part in parts if part in self.models), *([study] if study else [])]

    def _turn(self, circle: list[str]) -> KeyPath:
        """Where a circle of merges is reported: at its study, else at its first model."""
        for name in circle:
            if name in self.config.studies:
                return ("studies", name, "merge")
        return ("models", circle[0], "merge" if self.config.models[circle[0]].merge else "moe")

    # forms

    def form_name(self, at: KeyPath, name: str, family: Family) -> None:
        """Report a user's name for a form of `family` that means something else."""
        self.name(at, name)
        for other in WITH_SECTIONS.values():
            if other is not family and other.form_pattern and other.form_pattern.fullmatch(name):
                self.add(at, f"{show(name)} is how {other.title} directories and shards are called")
        if SHARD_NAME.search(name):
            self.add(at, f"{show(name)} is how directories and shards are called")

    def _forms(self, at: KeyPath, model: Model) -> None:
        """Report forms of two families with one name, or names that differ in case alone.

        Evaluations are called after them, and some file systems ignore case. `form_name` reports
        names that only one of the families may give.
        """
        taken: dict[str, tuple[str, Family]] = {}
        for family in model.families():
            for form in family.names(model):
                first, owner = taken.setdefault(form.lower(), (form, family))
                pattern = family.form_pattern
                if owner is not family and not (pattern and pattern.fullmatch(first)):
                    text = f"{show(form)} is the name of a form of {owner.name} too"
                    same = "" if first == form else f", but for upper and lower case ({first})"
                    self.add((*at, family.name), f"{text}{same}; give one of them another `name`")

    def experts(self, name: str) -> int | None:
        """The number of experts of a model, 0 if it is dense; None if that is unknown here."""
        model = self.config.models.get(name)
        if model and model.own_gguf:
            return model.own_gguf.experts
        config = self.model_config(name)
        return None if config is None else _count_experts(config)

    def model_config(self, name: str, seen: frozenset[str] = frozenset()) -> dict[str, Any] | None:
        """The config.json of a model, or of a part of its merge, from files here; None if unknown.

        seen: models that were looked at, so that circles of merges end.
        """
        model = self.config.models.get(name)
        if model is None or name in seen:
            return None
        configs = (self._config_of(part, seen | {name}) for part in filter(None, model.parts()))
        found = next((config for config in configs if config is not None), None)
        mixed = found is not None and model.moe is not None and is_sound(model.moe)
        return moe_architectures.config_of(model.moe, found) if mixed else found

    def _config_of(self, part: str, seen: frozenset[str] = frozenset()) -> dict[str, Any] | None:
        """As `model_config`, of a directory too."""
        if reference_kind(part) == "directory":
            return _read_config(self._place(f"{part}/config.json"))
        return self.model_config(part, seen)

    def _publish(self, at: KeyPath, raw: Mapping[str, Any], model: Model) -> None:
        publish = model.publish
        for form in (name for name in PUBLISHED if name in WITH_SECTIONS):
            if getattr(publish, form) and form not in raw:
                self.add((*at, form), f"the model has no {form} section: nothing to publish")
        if publish.safetensors and raw.get("merge") is None and raw.get("moe") is None:
            text = "only a merge or a mixture of experts is published as safetensors"
            self.add((*at, "safetensors"), text)
        for key in ("max_kld", "survivors"):
            if getattr(publish, key) and "evaluate" not in raw:
                self.add((*at, key), "the model has no evaluate section: nothing measures it")
        single = [name for name in BY_FORM if "{form}" in (getattr(publish, name) or "")]
        if publish.survivors and single:
            why = f"{single[0]} has a repository for each form: name one for all of them"
            self.add((*at, "survivors"), why)
        forms = {"*", *(form for family in model.families() for form in family.names(model))}
        for form in publish.max_kld:
            if form not in forms and INVALID not in forms:
                near = suggestion(form, forms)
                self.add((*at, "max_kld", form), f"the model has no such form{near}")
        if publish.license_name and publish.license != "other":
            self.add((*at, "license_name"), "belongs to license: other")
        if publish.card_template is not None:
            self.file((*at, "card_template"), publish.card_template)

    def _repositories(self) -> None:
        """Report a repository with forms of two models or families: it has one card only."""
        owners: dict[str, str] = {}
        for name, model in self.config.models.items():
            for repository in repositories(model):
                own = f"{name}'s {repository.form or repository.family}"
                owner = owners.setdefault(repository.name.lower(), own)
                if owner != own:
                    at = ("models", name, "publish", repository.family)
                    self.add(at, f"{show(repository.name)} is the repository of {owner} already")


def is_gguf_file(source: str) -> bool:
    """Whether a model's source is the path of a GGUF file, and no model directory or hub id."""
    return source.endswith(".gguf") and reference_kind(source) == "directory"


def is_demo(path: str) -> bool:
    """Whether a path is in the directory in which a run makes the demo's models and texts."""
    plain = os.path.normpath(path)
    return plain == demo.PLACE or plain.startswith(demo.PLACE + os.sep)


def _read_config(path: str) -> dict[str, Any] | None:
    """The content of a config.json; None if it cannot be read."""
    try:
        found = soundness.document(Path(path))
    except (OSError, UserError):
        return None
    return None if not isinstance(found, dict) or soundness.config_fault(found) else found


def _count_experts(config: dict[str, Any]) -> int:
    """Experts that a config.json declares, 0 for a dense model."""
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    return max((part.get(key) or 0 for part in parts for key in EXPERT_COUNTS), default=0)

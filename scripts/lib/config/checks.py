"""What the models of schema.py cannot see: how keys, models and files of a config fit together."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib.config.merges import check_merge
from lib.config.repositories import exl2_form, repositories
from lib.config.schema import (
    Config,
    Corpus,
    Exl2,
    Gguf,
    GgufSource,
    Imatrix,
    LlamaCpp,
    Model,
    Quant,
)
from lib.formats.corpora import fault
from lib.formats.merge_references import (
    MODEL_NAME,
    TOKENIZER_WORDS,
    merge_references,
    reference_kind,
)
from lib.formats.model_files import ModelFilesError, model_files
from lib.formats.quants import QUANT_TYPES, TENSOR_ABORTS_WITHOUT_IMATRIX, TENSOR_NEEDS_IMATRIX
from lib.keys.values import show, suggestion
from lib.record.contents import STORE, Contents
from lib.record.tools import CONVERTER, LLAMA_TOOLS, own_tool

KeyPath = tuple[Any, ...]
# Stands in the list for a quant with mistakes of its own, so that the others keep their numbers.
BAD_QUANT = "\0"
# The workflow makes what is in here.
DEMO = "resources/demo"
# exllamav2's own calibration set.
DEFAULT_CORPUS = "default"
FORM_OF_EXL2 = re.compile(r"\d+(\.\d+)?bpw", re.IGNORECASE)
SHARD_NAME = re.compile(r"-\d{5}-of-\d{5}$")
SUFFIXES = (".txt", ".parquet")
IMATRIX_SUFFIXES = (".dat", ".gguf")
QUANTIZED_OUTTYPES = ("q8_0", "tq1_0", "tq2_0")
# Keys of a model's config.json that count its experts.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
LONGEST_NAME = 96


class Checks:
    """One pass over a config. `raw` is what it was made from: it also has what was left out."""

    def __init__(self, config: Config, raw: Mapping[str, Any], workdir: Path) -> None:
        self.config = config
        self.corpora = _mapping(raw.get("corpora"))
        self.models = _mapping(raw.get("models"))
        self.no_models = raw.get("models") in (None, {})
        self.workdir = str(workdir)
        self.found: list[tuple[KeyPath, str]] = []

    def run(self) -> list[tuple[KeyPath, str]]:
        """(key path, message) of every problem."""
        if self.no_models:
            self._add(("models",), "names no model: there is nothing to build")
        if self.config.llama_cpp.path is not None:
            self._llama_cpp(self.config.llama_cpp)
        self._names(("corpora",), self.corpora)
        for name, corpus in self.config.corpora.items():
            self._corpus(("corpora", name), name, corpus)
        self._names(("models",), self.models)
        for name, model in self.config.models.items():
            self._model(("models", name), name, model)
        self._cycles()
        self._repositories()
        return self.found

    def _add(self, at: KeyPath, message: str) -> None:
        self.found.append((at, message))

    # files and directories

    def _place(self, path: str) -> str:
        return os.path.join(self.workdir, path)

    def _file(self, at: KeyPath, path: str) -> None:
        if path.startswith("~"):
            self._add(at, f"{show(path)}: ~ is not expanded here; write the path in full")
        elif is_demo(path) or os.path.isfile(self._place(path)):
            return
        elif os.path.isdir(self._place(path)):
            self._add(at, f"{show(path)} is a directory, not a file")
        else:
            self._add(at, f"no file {show(path)} in {self.workdir}")

    def _text(self, at: KeyPath, path: str) -> None:
        """A file with text in it."""
        self._file(at, path)
        place = Path(self._place(path))
        if path.endswith(SUFFIXES) and not is_demo(path) and place.is_file():
            try:
                wrong = fault(place)
            except OSError as error:
                wrong = f"cannot be read: {error.strerror}"
            if wrong:
                self._add(at, f"{show(path)} {wrong}; name a file with text in it")

    def _llama_cpp(self, section: LlamaCpp) -> None:
        if not os.path.isdir(self._place(section.path)):
            message = f"no directory {show(section.path)} in {self.workdir}"
            self._add(("llama_cpp", "path"), message)
        else:
            tools = (*LLAMA_TOOLS, CONVERTER)
            missing = [tool for tool in tools if own_tool(self._place(section.path), tool) is None]
            if missing:
                self._add(("llama_cpp", "path"), f"{section.path} has no {', '.join(missing)}")
        for key in ("cuda", "portable"):
            if key in section.model_fields_set:
                message = "has no effect together with path, which is built already"
                self._add(("llama_cpp", key), message)

    # names

    def _names(self, at: KeyPath, names: Iterable[Any]) -> None:
        seen: dict[str, str] = {}
        for name in names:
            if not isinstance(name, str):
                continue  # reported by the models
            self._name((*at, name), name)
            first = seen.setdefault(name.lower(), name)
            if first != name:
                self._add((*at, name), f"differs from {first} only in upper and lower case")

    def _name(self, at: KeyPath, name: str) -> None:
        if not MODEL_NAME.fullmatch(name):
            rule = "letters, digits and . _ - only, the first a letter or digit"
            self._add(at, f"{show(name)} is no safe file name: {rule}")
        elif len(name) > LONGEST_NAME:
            self._add(at, f"the name is longer than {LONGEST_NAME} characters")
        elif name.lower().endswith((".json", ".gguf", ".recipe", ".")):
            self._add(at, f"{show(name)} ends as other files do; choose another name")

    # corpora

    def _corpus(self, at: KeyPath, name: str, corpus: Corpus) -> None:
        if name == DEFAULT_CORPUS:
            self._add(at, "the name stands for exllamav2's own calibration set; choose another")
        raw = _mapping(self.corpora[name])
        given = {key for key in Corpus.model_fields if raw.get(key) is not None}
        origins = [key for key in ("path", "url", "hub") if key in given]
        if len(origins) != 1:
            got = " and ".join(origins) or "none of them"
            self._add(at, f"exactly one of path, url and hub must be given, not {got}")
            return
        for key, owner in (("sha256", "url"), ("file", "hub"), ("revision", "hub")):
            if key in given and owner not in given:
                self._add((*at, key), f"belongs to {owner}, which is not given")
            elif owner in given and key not in given and key != "revision":
                self._add(at, f"{owner} needs {key} besides")
        if corpus.path is not None:
            self._text((*at, "path"), corpus.path)
        if corpus.url is not None and not corpus.url.startswith(("https://", "http://")):
            self._add((*at, "url"), f"{show(corpus.url)} is no http or https address")
        file, key = corpus.origin(), "file" if corpus.hub else origins[0]
        if file and not file.endswith(SUFFIXES):
            self._add((*at, key), f"{show(file)} is neither .txt nor .parquet")

    def _uses_corpus(self, at: KeyPath, name: str) -> None:
        if name not in self.corpora:
            known = [key for key in self.corpora if isinstance(key, str)]
            near = suggestion(name, known)
            self._add(at, f"{show(name)} is not in corpora{near} (there are: {_listed(known)})")

    # models

    def _model(self, at: KeyPath, name: str, model: Model) -> None:
        raw = _mapping(self.models[name])
        if name in TOKENIZER_WORDS:
            self._add(at, f"{name} is a word of mergekit's tokenizer_source; choose another name")
        given = [key for key in ("merge", "source") if raw.get(key) is not None]
        if len(given) != 1:
            got = "both" if given else "neither"
            self._add(at, f"exactly one of merge and source must be given, not {got}")
        if model.source is not None and is_gguf_file(model.source):
            self._gguf_source(at, model)
        elif model.source is not None:
            self._source((*at, "source"), model.source)
        if model.merge is not None:
            self._merge((*at, "merge"), model.merge)
        if model.gguf is not None:
            self._gguf((*at, "gguf"), name, model)
        if model.exl2 is not None:
            self._exl2((*at, "exl2"), model.exl2)
        if model.evaluate is not None:
            if "gguf" not in raw and "exl2" not in raw:
                self._add((*at, "evaluate"), "there is neither gguf nor exl2 to evaluate")
            self._uses_corpus((*at, "evaluate", "corpus"), model.evaluate.corpus)
        if model.publish is not None:
            self._publish((*at, "publish"), raw, model)

    def _source(self, at: KeyPath, source: str) -> None:
        if source in self.models:
            wanted = "source is a directory (./x or /x) or a hub id"
            self._add(at, f"{show(source)} is a model of this config, and {wanted}")
        elif source.endswith(".gguf") and os.path.isfile(self._place(source)):
            self._add(at, f"{show(source)} is a file here: write ./{source}")
        else:
            self._reference(at, source, "config.json")

    def _gguf_source(self, at: KeyPath, model: Model) -> None:
        """A GGUF file as a model: what it is, and what cannot be made of it.

        (`publish.safetensors` is refused of all that is no merge.)
        """
        from lib.formats.gguf_file import GgufError  # takes 0.08 s, and few configs need it
        from lib.formats.gguf_source import describe

        path = self._place(model.source)
        self._file((*at, "source"), model.source)
        if os.path.isfile(path):
            try:
                contents = Contents(Path(self.workdir) / STORE)
                found = contents.remembered(path, "gguf", lambda: describe(Path(path)))
                contents.save()
                model._own_gguf = GgufSource(*found)
            except (GgufError, OSError) as error:
                self._add((*at, "source"), str(error).replace(str(Path(path)), model.source))
        refused = {
            ("exl2",): model.exl2 is not None,
            ("allow_pickle",): model.allow_pickle,
            ("gguf", "outtype"): bool(model.gguf and "outtype" in model.gguf.model_fields_set),
        }
        for key, given in refused.items():
            if given:
                message = f"needs safetensors, and source is the GGUF file {model.source}"
                self._add((*at, *key), message)

    def _reference(self, at: KeyPath, text: str, needed: str) -> None:
        """A model that is named; as a directory it has the file `needed`."""
        kind = reference_kind(text)
        source = self.config.models[text].source if text in self.config.models else text
        if source and is_gguf_file(source):
            which = f"{source}, " * (source != text)
            self._add(at, f"{show(text)} is {which}a GGUF file, and merges need safetensors")
            return
        if kind == "model" and text in self.models:
            return
        if kind == "directory":
            if not is_demo(text) and not os.path.isdir(self._place(text)):
                self._add(at, f"no directory {show(text)} in {self.workdir}")
            elif not is_demo(text) and not os.path.isfile(self._place(f"{text}/{needed}")):
                self._add(at, f"{show(text)} has no {needed}, so it is no model directory")
            elif not is_demo(text):
                try:
                    model_files(Path(self._place(text)), self.config.models[at[1]].allow_pickle)
                except ModelFilesError as error:
                    self._add(at, str(error).replace(self._place(text), text))
        elif kind == "hub":
            if "@" not in text and os.path.isdir(self._place(text)):
                choice = f"write ./{text} for the directory, {text}@main for the hub"
                self._add(at, f"{show(text)} is a directory here and may be a hub id too: {choice}")
        else:
            near = suggestion(text, [name for name in self.models if isinstance(name, str)])
            merges = at[2] == "merge"
            wanted = "a model of this config, " * merges + "a directory (./x or /x) nor a hub id "
            wanted += "(org/name or org/name@revision)"
            self._add(at, f"{show(text)} is neither {wanted}{near if merges else ''}")

    def _merge(self, at: KeyPath, merge: Mapping[str, Any]) -> None:
        for where, message, words in check_merge(merge):
            near = suggestion(where[-1] if "no key" in message else _at(merge, where), words)
            listed = f" (known: {', '.join(words)})" if words else ""
            self._add((*at, *where), f"{message}{near}{listed}")
        for reference in merge_references(merge):
            here = (*at, *reference.where)
            if len(reference.parts) > 2:
                self._add(here, "only one adapter can be added to a model: model+adapter")
            for index, part in enumerate(reference.parts):
                self._reference(here, part, "adapter_config.json" if index else "config.json")

    def _cycles(self) -> None:
        """A merge cannot be made of itself, not even by way of others."""
        parents = {
            name: [
                part
                for reference in merge_references(model.merge)
                for part in reference.parts
                if part in self.models
            ]
            for name, model in self.config.models.items()
            if model.merge is not None
        }
        for cycle in _find_cycles(parents):
            around = " -> ".join([*cycle, cycle[0]])
            self._add(("models", cycle[0], "merge"), f"the merges go round in a circle: {around}")

    # forms

    def _gguf(self, at: KeyPath, name: str, model: Model) -> None:
        gguf = model.gguf
        if gguf.imatrix and gguf.imatrix.file is not None:
            self._imatrix_file((*at, "imatrix"), gguf.imatrix)
        elif gguf.imatrix:
            self._uses_corpus((*at, "imatrix", "corpus"), gguf.imatrix.corpus)
        conversion = model.conversion
        what = "the source" if model.own_gguf else "the conversion, which is named after outtype"
        names = {conversion.lower(): what}
        itself = _conversion_itself(gguf, conversion)
        for index, quant in enumerate(gguf.quants):
            if quant.name == BAD_QUANT or index == itself:
                continue
            here = (*at, "quants", index)
            self._name((*here, "name"), quant.name)
            if FORM_OF_EXL2.fullmatch(quant.name) or SHARD_NAME.search(quant.name):
                message = f"{show(quant.name)} is how EXL2 directories and shards are called"
                self._add((*here, "name"), message)
            if quant.name.lower() in names:
                message = f"{show(quant.name)} is the name of {names[quant.name.lower()]} too"
                self._add((*here, "name"), message)
            names.setdefault(quant.name.lower(), f"quants[{index}]")
            self._quant(here, quant, model)
            if quant.type == "MXFP4_MOE" and self._experts(name, set()) == 0:
                message = "MXFP4_MOE is for mixtures of experts: of this dense model it makes Q8_0"
                self._add((*here, "type"), message)

    def _imatrix_file(self, at: KeyPath, imatrix: Imatrix) -> None:
        self._file((*at, "file"), imatrix.file)
        if not imatrix.file.endswith(IMATRIX_SUFFIXES):
            self._add((*at, "file"), f"{show(imatrix.file)} is neither .dat nor .gguf")
        for key in sorted(imatrix.model_fields_set - {"file"}):
            self._add((*at, key), "has no effect together with file, which is computed already")

    def _quant(self, at: KeyPath, quant: Quant, model: Model) -> None:
        gguf = model.gguf
        uses_imatrix = bool(gguf.imatrix) and quant.imatrix
        why = "this quant has imatrix: false" if gguf.imatrix else "the model has no gguf.imatrix"
        if QUANT_TYPES[quant.type].needs_imatrix and not uses_imatrix:
            self._add((*at, "type"), f"{quant.type} needs an imatrix, and {why}")
        for override in quant.tensor_types:
            if override.rpartition("=")[2] in TENSOR_NEEDS_IMATRIX and not uses_imatrix:
                self._add((*at, "tensor_types"), f"{override} needs an imatrix, and {why}")
        for key in ("exclude_weights", "include_weights"):
            if getattr(quant, key) and not uses_imatrix:
                self._add((*at, key), f"has no effect without an imatrix, and {why}")
        if "imatrix" in quant.model_fields_set and quant.imatrix and not gguf.imatrix:
            self._add((*at, "imatrix"), "is true, but the model has no gguf.imatrix")
        if quant.exclude_weights and quant.include_weights:
            self._add(at, "exclude_weights and include_weights exclude each other")
        if quant.leave_output_tensor and quant.output_tensor_type:
            self._add(at, "leave_output_tensor and output_tensor_type exclude each other")
        if quant.token_embedding_type in TENSOR_ABORTS_WITHOUT_IMATRIX:
            needs = f"{quant.token_embedding_type} needs an imatrix"
            message = f"{needs}, and an imatrix has nothing on token embeddings"
            self._add((*at, "token_embedding_type"), message)
        if model.own_gguf and model.own_gguf.quantized and not quant.allow_requantize:
            got = f"source {model.source} is quantized already ({model.conversion})"
            self._add(at, f"{got}: give the unquantized file, or set allow_requantize: true")
        elif gguf.outtype in QUANTIZED_OUTTYPES and not quant.allow_requantize:
            got = f"outtype {gguf.outtype} is quantized already"
            self._add(at, f"{got}: choose bf16, f16 or f32, or set allow_requantize: true")

    def _experts(self, name: str, seen: set[str]) -> int | None:
        """Experts of a model as far as directories on this machine tell; None if unknown."""
        model = self.config.models.get(name)
        if model is None or name in seen:
            return None
        seen.add(name)
        if model.own_gguf:
            return model.own_gguf.experts
        if model.merge is None:
            texts = [model.source or ""]
        else:
            texts = [reference.parts[0] for reference in merge_references(model.merge)]
        for text in texts:
            count = None
            if reference_kind(text) == "directory":
                count = _count_experts(self._place(f"{text}/config.json"))
            elif text in self.models:
                count = self._experts(text, seen)
            if count is not None:
                return count
        return None

    def _exl2(self, at: KeyPath, exl2: Exl2) -> None:
        if exl2.measurement is not None:
            self._file((*at, "measurement"), exl2.measurement)
            for key in ("measurement_rows", "measurement_length"):
                if key in exl2.model_fields_set:
                    message = "has no effect together with measurement, which was made already"
                    self._add((*at, key), message)
        if exl2.corpus == DEFAULT_CORPUS:
            return
        self._uses_corpus((*at, "corpus"), exl2.corpus)
        corpus = self.config.corpora.get(exl2.corpus)
        if corpus is not None and corpus.origin().endswith(".txt"):
            message = f"exllamav2 takes a .parquet text, and {exl2.corpus} is .txt"
            self._add((*at, "corpus"), message)

    def _publish(self, at: KeyPath, raw: Mapping[str, Any], model: Model) -> None:
        publish = model.publish
        for form in ("gguf", "exl2"):
            if getattr(publish, form) and form not in raw:
                self._add((*at, form), f"the model has no {form} section: nothing to publish")
        if publish.safetensors and raw.get("merge") is None:
            self._add((*at, "safetensors"), "only a merge is published as safetensors")
        if publish.max_kld and "evaluate" not in raw:
            self._add((*at, "max_kld"), "the model has no evaluate section: nothing measures it")
        forms = {"*", *map(exl2_form, model.exl2.bits if model.exl2 else ())}
        if model.gguf:
            forms |= {quant.name for quant in model.gguf.quants} | {model.conversion}
        for form in publish.max_kld:
            if form not in forms and BAD_QUANT not in forms:
                near = suggestion(form, forms)
                self._add((*at, "max_kld", form), f"the model has no such form{near}")
        if publish.license_name and publish.license != "other":
            self._add((*at, "license_name"), "belongs to license: other")
        if publish.card_template is not None:
            self._file((*at, "card_template"), publish.card_template)

    def _repositories(self) -> None:
        """A repository has one card, so it holds one kind of one model."""
        owners: dict[str, str] = {}
        for name, model in self.config.models.items():
            for repository in repositories(model):
                own = f"{name}'s {repository.form or repository.kind}"
                owner = owners.setdefault(repository.name.lower(), own)
                if owner != own:
                    at = ("models", name, "publish", repository.kind)
                    self._add(at, f"{show(repository.name)} is the repository of {owner} already")


def is_gguf_file(source: str) -> bool:
    """Whether a model's source is a GGUF file, and no directory and no repository."""
    return source.endswith(".gguf") and reference_kind(source) == "directory"


def _mapping(value: Any) -> Any:
    return value if isinstance(value, Mapping) else {}


def _listed(words: list[str]) -> str:
    return ", ".join(words) or "none"


def is_demo(path: str) -> bool:
    """Whether a path lies where the workflow makes the embedded default's models and texts."""
    plain = os.path.normpath(path)
    return plain == DEMO or plain.startswith(DEMO + os.sep)


def _at(value: Any, where: KeyPath) -> Any:
    for key in where:
        value = value[key]
    return value


def _conversion_itself(gguf: Gguf, conversion: str) -> int | None:
    """The number of the quant that only names the conversion: its type and no options."""
    for index, quant in enumerate(gguf.quants):
        if quant.name == quant.type == conversion:
            options = quant.model_dump(exclude={"name", "type", "imatrix"}, exclude_defaults=True)
            return None if options else index
    return None


def _find_cycles(parents: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """The circles of a graph, each once, beginning with its first node in the graph's order."""
    done: set[str] = set()
    for start in parents:
        if start in done:
            continue
        trail = [start]
        stack = [iter(parents[start])]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                done.add(trail.pop())
                stack.pop()
            elif following in trail:
                yield trail[trail.index(following) :]
            elif following not in done and following in parents:
                trail.append(following)
                stack.append(iter(parents[following]))


def _count_experts(path: str) -> int | None:
    """Experts that a config.json declares, 0 for a dense model; None if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return None
    parts = [document, *(part for part in document.values() if isinstance(part, dict))]
    return max((part.get(key) or 0 for part in parts for key in EXPERT_COUNTS), default=0)

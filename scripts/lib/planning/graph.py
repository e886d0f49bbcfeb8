"""From the config to the artifacts: what each is called, what it is made from, and its recipe.

Pure: nothing is built or asked of the disk here, but for the content of outside files (`Contents`) and the
versions of tools, which belong to recipes. Recipes are computed when asked for, so that one model's target
costs one model's recipes. To add a stage, add a method that returns its artifacts, and a rules file.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from lib.config.repositories import repositories
from lib.config.schema import Config, Corpus, Model, Quant
from lib.formats.merge_references import merge_references
from lib.hub.lock import Lock, Wanted
from lib.planning.publishing import PLOT, card_options, local_card_options
from lib.record import recipe as recipes
from lib.record.code import code_digest
from lib.record.contents import Contents
from lib.record.tools import llama_version, package_version
from lib.stages.families import FAMILIES

MERGE_TOOLS = ("mergekit", "torch", "transformers")
# Methods of mergekit 0.1.5 whose result depends on random_seed: they drop or sample at random.
DRAWING_METHODS = ("arcee_fusion", "dare_linear", "dare_ties", "della", "della_linear")
DEMO = "resources/demo"


@dataclass(eq=False)
class Artifact:
    """One thing that is built. `outputs` are its files, `path` the first of them (or the directory).

    intermediate: others are made from it; once deleted it is built again only when something stale needs it.
    temporary: it is deleted as soon as nothing in the run needs it.
    links: a link, or a directory of links, to files that are kept elsewhere.
    file: the user's own file that it is made from, as the config writes it.
    reproducible: the same recipe gives the same bytes.
    on_demand: it is built only where a target asks for it by name.
    describes: it tells of others, in seconds: it is made anew where others are accepted as they are.
    """

    path: str
    rule: str
    model: str | None
    options: dict[str, Any]
    inputs: dict[str, "Artifact"] = field(default_factory=dict)
    uses: dict[str, "Artifact"] = field(
        default_factory=dict
    )  # tools: needed, but no part of the recipe
    sources: dict[str, Any] = field(
        default_factory=dict
    )  # name -> function that gives the identity
    tools: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    directory: bool = False
    intermediate: bool = False
    temporary: bool = False
    links: bool = False
    file: str | None = None
    reproducible: bool = True
    on_demand: bool = False
    describes: bool = False

    def __post_init__(self):
        self.outputs = self.outputs or (self.path,)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides the bytes."""
        return {
            "step": self.rule,
            "options": recipes.normalise(self.options),
            "inputs": {role: artifact.digest for role, artifact in self.inputs.items()},
            "sources": recipes.normalise({name: ask() for name, ask in self.sources.items()}),
            "tools": self.tools,
            "code": code_digest(self.rule),
        }

    @cached_property
    def digest(self) -> str:
        """sha256 of the recipe."""
        return recipes.digest(self.recipe, normal=True)


class Graph:
    """All artifacts of a config. `only` names the models to look at; None is all of them."""

    def __init__(
        self,
        config: Config,
        contents: Contents,
        lock: Lock,
        only: Iterable[str] | None = None,
        exl2: bool = True,
    ):
        self.config, self.contents, self.lock, self.exl2 = config, contents, lock, exl2
        self.names = [name for name in config.models if only is None or name in set(only)]
        self._models: dict[str, dict[str, Artifact]] = {}
        self._shared: dict[str, Artifact] = {}

    def __iter__(self) -> Iterator[Artifact]:
        """Every artifact that the chosen models declare."""
        for name in self.names:
            yield from self.of(name).values()

    def of(self, name: str) -> dict[str, Artifact]:
        """{path: artifact} of one model."""
        if name not in self._models:
            self._models[name] = {}  # a merge may ask for the weights of a model of the same graph
            self._models[name] = {artifact.path: artifact for artifact in self._build(name)}
        return self._models[name]

    def find(self, path: str) -> Artifact | None:
        """The artifact that has this path among its outputs, or None when the config declares none."""
        parts = PurePosixPath(path).parts
        if len(parts) > 2 and parts[0] == "results":
            artifact = self.of(parts[1]) if parts[1] in self.config.models else {}
            return artifact.get(path) or next(
                (a for a in artifact.values() if path in a.outputs), None
            )
        if path not in self._shared:
            self._declare_shared()
        return self._shared.get(path)

    # what is shared by models

    @cached_property
    def llama_cpp(self) -> Artifact:
        """The converter and the compiled tools. Consumers' recipes hold its version, not where or how it was built."""
        wanted = self.config.llama_cpp
        options = {"path": wanted.path, "cuda": wanted.cuda, "portable": wanted.portable}
        return self._share(
            "resources/llama.cpp",
            "llama_cpp",
            options,
            tools={"llama.cpp": self.llama_version},
            directory=True,
            links=True,
        )

    @cached_property
    def llama_version(self) -> str:
        return llama_version(self.config.llama_cpp.path, self.contents)

    def _by_llama_cpp(self) -> dict[str, Any]:
        """What every step of llama.cpp's has: its version in the recipe, its tools at hand."""
        return {"tools": {"llama.cpp": self.llama_version}, "uses": {"llama.cpp": self.llama_cpp}}

    def _share(self, path: str, rule: str, options: dict, **details) -> Artifact:
        if path not in self._shared:
            self._shared[path] = Artifact(path, rule, None, options, intermediate=True, **details)
        return self._shared[path]

    def _declare_shared(self) -> None:
        """Make every shared artifact known, for a target that names one."""
        _ = self.llama_cpp
        self.demo("base"), self.demo("code"), self.demo("prose")
        for name in self.config.corpora:
            for suffix in (".txt", ".parquet"):
                self.corpus(name, suffix)
        for name in self.config.models:
            self.of(name)

    def demo(self, name: str) -> Artifact:
        """The embedded default's text and tiny models (rules/demo.smk)."""
        path = f"{DEMO}/{name}"
        if name == "text":
            versions = {"python": package_version("python")}
            return self._share(path, "demo_text", {}, tools=versions, directory=True)
        inputs = {"text": self.demo("text")}
        rule = "demo_base"
        if name != "base":
            rule, inputs = "demo_finetune", {"base": self.demo("base"), **inputs}
        versions = {
            tool: package_version(tool) for tool in ("torch", "transformers", "sentencepiece")
        }
        options = {} if name == "base" else {"domain": name}
        return self._share(
            path,
            rule,
            options,
            inputs=inputs,
            tools=versions,
            directory=True,
        )

    def corpus(self, name: str, suffix: str = ".txt") -> Artifact:
        """A corpus of the config as plain text, or as parquet, under a path that depends on its name alone."""
        corpus = self.config.corpora[name]
        path = f"resources/corpora/{name}{suffix}"
        options = {"from": PurePosixPath(corpus.origin()).suffix, "to": suffix}
        details: dict[str, Any] = {}
        if corpus.path and corpus.path.removeprefix("./").startswith(f"{DEMO}/text/"):
            details["inputs"] = {"text": self.demo("text")}
            options["file"] = PurePosixPath(corpus.path).name
        else:
            details["sources"] = {f"corpus {name}": lambda: self._corpus_identity(corpus)}
        return self._share(path, "corpus", options, **details)

    def _corpus_identity(self, corpus: Corpus) -> dict[str, str]:
        if corpus.path:
            return {"sha256": self.contents.file(corpus.path)}
        if corpus.url:
            return {"sha256": corpus.sha256}
        return self.lock.identity(Wanted(corpus.reference(), "dataset", corpus.file))

    # what a model is made of

    def weights(self, reference: str, allow_pickle: bool = False) -> Artifact:
        """The model directory that a name of the config, a directory or a hub id stands for."""
        if reference in self.config.models:
            model = self.config.models[reference]
            if model.merge is not None:
                return self._merge(reference, model)
            return self.weights(model.source, model.allow_pickle)
        plain = str(PurePosixPath(reference))
        if plain.startswith(f"{DEMO}/"):
            return self.demo(PurePosixPath(plain).name)
        options = {"allow_pickle": True} if allow_pickle else {}
        if reference.startswith((".", "/", "~")):
            sources = {
                f"model {reference}": lambda: self.contents.directory(reference, allow_pickle)
            }
        else:
            sources = {f"model {reference}": lambda: self.lock.identity(reference)}
        return self._share(
            f"resources/models/{slug(reference)}",
            "source",
            options,
            sources=sources,
            directory=True,
            links=True,
        )

    def _merge(self, name: str, model: Model) -> Artifact:
        path = f"results/{name}/safetensors"
        if path in self._shared:
            return self._shared[path]
        references = merge_references(model.merge)
        names = dict.fromkeys(part for reference in references for part in reference.parts)
        options: dict[str, Any] = {"merge": model.merge}
        if model.merge.get("merge_method") in DRAWING_METHODS:
            options["random_seed"] = model.random_seed
        if model.allow_pickle:
            options["allow_pickle"] = True
        intermediate = model.gguf is not None or model.exl2 is not None
        published = model.publish is not None and model.publish.safetensors is not None
        artifact = Artifact(
            path,
            "merge",
            name,
            options,
            inputs={f"model {part}": self.weights(part, model.allow_pickle) for part in names},
            tools={tool: package_version(tool) for tool in MERGE_TOOLS},
            directory=True,
            intermediate=intermediate,
            temporary="safetensors" in self.config.reclaim and intermediate and not published,
        )
        self._shared[path] = artifact
        return artifact

    def _build(self, name: str) -> Iterator[Artifact]:
        model = self.config.models[name]
        if model.merge is None and model.gguf is None and model.exl2 is None:
            return
        weights = None if model.own_gguf else self.weights(name)
        if model.merge is not None:
            yield weights
        forms: dict[str, Artifact] = {}
        evaluations: dict[str, Artifact] = {}
        shards: dict[str, Artifact] = {}
        if model.gguf is not None:
            yield from self._gguf(name, model, weights, forms, evaluations, shards)
        if model.exl2 is not None and self.exl2:
            yield from self._exl2(name, model, weights, forms, evaluations)
        report = self._report(name, weights or forms[model.conversion], forms, evaluations)
        yield report
        yield from self._cards(name, model, report, forms, shards)

    def _gguf(self, name, model, weights, forms, evaluations, shards) -> Iterator[Artifact]:
        gguf, here = model.gguf, f"results/{name}"
        outtype = model.conversion
        quants = [quant for quant in gguf.quants if not is_conversion(quant, outtype)]
        kept = len(quants) < len(gguf.quants)
        intermediate = bool(quants) and not kept
        if model.own_gguf:
            conversion = self._own_file(
                f"{here}/gguf/{name}-{outtype}.gguf",
                "source_gguf",
                name,
                model.source,
                uses={"llama.cpp": self.llama_cpp},
                intermediate=intermediate,
                links=True,
            )
        else:
            conversion = Artifact(
                f"{here}/gguf/{name}-{outtype}.gguf",
                "convert",
                name,
                {"outtype": gguf.outtype, "model_name": name},
                inputs={"model": weights},
                **self._by_llama_cpp(),
                intermediate=intermediate,
                temporary="bf16" in self.config.reclaim and intermediate,
            )
        yield conversion
        forms[outtype] = conversion

        imatrix = None
        if gguf.imatrix and any(quant.imatrix for quant in quants):
            imatrix = self._imatrix(name, model, conversion)
            yield imatrix

        for quant in quants:
            forms[quant.name] = artifact = self._quant(name, quant, conversion, imatrix)
            yield artifact
        for form in [outtype] * kept + [quant.name for quant in quants]:
            finished = forms[form]
            if gguf.metadata:
                yield (finished := self._labelled(name, finished, gguf.metadata))
            if gguf.split_max_size:
                shards[form] = Artifact(
                    f"{here}/shards/{form}",
                    "split",
                    name,
                    {"split_max_size": str(gguf.split_max_size)},
                    inputs={"gguf": finished},
                    **self._by_llama_cpp(),
                    directory=True,
                )
                yield shards[form]
        if model.evaluate is not None:
            yield from self._evaluate_gguf(name, model, conversion, forms, evaluations)

    def _own_file(self, path: str, rule: str, name: str, file: str, **details) -> Artifact:
        """What is made of a file of the user's own: its content decides, not its path or date."""
        identity = {"file": lambda: {"sha256": self.contents.file(file)}}
        return Artifact(path, rule, name, {}, sources=identity, file=file, **details)

    def _imatrix(self, name, model, conversion) -> Artifact:
        """The importance matrix: the user's own, or computed."""
        if file := model.own_imatrix:
            return self._own_file(
                f"results/{name}/imatrix{PurePosixPath(file).suffix}",
                "imatrix_file",
                name,
                file,
                inputs={"gguf": conversion},
            )
        wanted = model.gguf.imatrix
        options = wanted.model_dump(exclude={"corpus"}, exclude_defaults=True)
        return Artifact(
            f"results/{name}/imatrix.{wanted.format}",
            "imatrix",
            name,
            {"context": wanted.context, **options},
            inputs={"gguf": conversion, "corpus": self.corpus(wanted.corpus)},
            **self._by_llama_cpp(),
        )

    def _quant(self, name, quant: Quant, conversion, imatrix) -> Artifact:
        inputs = {"gguf": conversion}
        if imatrix is not None and quant.imatrix:
            inputs["imatrix"] = imatrix
        return Artifact(
            f"results/{name}/gguf/{name}-{quant.name}.gguf",
            "quantize",
            name,
            quant.model_dump(exclude={"name", "imatrix"}, exclude_defaults=True),
            inputs=inputs,
            **self._by_llama_cpp(),
        )

    def _labelled(self, name: str, gguf: Artifact, metadata: dict[str, Any]) -> Artifact:
        """A finished GGUF with the config's header fields: what is split and published, and never quantized anew."""
        return Artifact(
            f"results/{name}/labelled/{PurePosixPath(gguf.path).name}",
            "label",
            name,
            {"metadata": metadata},
            inputs={"gguf": gguf},
            tools={"gguf": package_version("gguf")},
        )

    def _evaluate_gguf(self, name, model, conversion, forms, evaluations) -> Iterator[Artifact]:
        wanted, here = model.evaluate, f"results/{name}/evaluation"
        options = {"context": wanted.context, "chunks": wanted.chunks}
        base = Artifact(
            f"{here}/base.kld",
            "base_logits",
            name,
            options,
            inputs={"gguf": conversion, "corpus": self.corpus(wanted.corpus)},
            **self._by_llama_cpp(),
            intermediate=True,
            temporary=True,
        )
        yield base
        for form, artifact in forms.items():
            evaluations[form] = Artifact(
                f"{here}/{form}.json",
                "evaluate",
                name,
                {"corpus": wanted.corpus, **options},
                inputs={"gguf": artifact, "base": base},
                **self._by_llama_cpp(),
            )
            yield evaluations[form]

    def _exl2(self, name, model, weights, forms, evaluations) -> Iterator[Artifact]:
        wanted, here = model.exl2, f"results/{name}/exl2"
        tools = {"exllamav2": package_version("exllamav2")}
        calibration = {}
        if wanted.corpus != "default":
            calibration = {"corpus": self.corpus(wanted.corpus, ".parquet")}
        options = wanted.model_dump(exclude={"bits", "corpus", "measurement"})
        measuring = {
            key: options[key]
            for key in ("measurement_rows", "measurement_length", "rope_scale", "rope_alpha")
        }
        converting = {
            key: value for key, value in options.items() if not key.startswith("measurement")
        }
        common = {"tools": tools, "reproducible": False}
        if wanted.measurement:
            measurement = self._own_file(
                f"{here}/measurement.json",
                "exl2_measurement_file",
                name,
                wanted.measurement,
                inputs={"model": weights},
            )
        else:
            measurement = Artifact(
                f"{here}/measurement.json",
                "exl2_measure",
                name,
                measuring,
                inputs={"model": weights, **calibration},
                **common,
            )
        yield measurement
        artifact = {}
        for bits in wanted.bits:
            form = f"{float(bits)}bpw"
            artifact[form] = Artifact(
                f"{here}/{form}",
                "exl2_quantize",
                name,
                {"bits": bits, **converting},
                inputs={"model": weights, "measurement": measurement, **calibration},
                directory=True,
                **common,
            )
            yield artifact[form]
        forms.update(artifact)
        if model.evaluate is not None:
            for form, directory in artifact.items():
                evaluations[form] = Artifact(
                    f"results/{name}/evaluation/{form}.json",
                    "exl2_evaluate",
                    name,
                    model.evaluate.model_dump(include={"corpus", "context", "chunks"}),
                    inputs={
                        "exl2": directory,
                        "model": weights,
                        "corpus": self.corpus(model.evaluate.corpus),
                    },
                    tools=tools,
                )
                yield evaluations[form]

    def _report(self, name, weights, forms, evaluations) -> Artifact:
        here = f"results/{name}/report"
        outputs = tuple(f"{here}/quality.{kind}" for kind in ("csv", "svg", "html"))
        inputs = {f"form {form}": artifact for form, artifact in forms.items()}
        inputs |= {f"evaluation {form}": artifact for form, artifact in evaluations.items()}
        # An intermediate is not needed to write about it: its record tells its size, even when it is reclaimed.
        inputs = {role: artifact for role, artifact in inputs.items() if not artifact.intermediate}
        described = {
            form: {"file": artifact.path, "rule": artifact.rule, "evaluation": form in evaluations}
            | ({"type": artifact.options["type"]} if "type" in artifact.options else {})
            | ({"imatrix": "imatrix" in artifact.inputs} if artifact.rule == "quantize" else {})
            for form, artifact in forms.items()
        }
        return Artifact(
            outputs[0],
            "report",
            name,
            {"model": name, "weights": weights.path, "forms": described},
            inputs=inputs or {"model": weights},
            tools={"pandas": package_version("pandas")},
            outputs=outputs,
            describes=True,
        )

    def _cards(self, name, model, report, forms, shards) -> Iterator[Artifact]:
        """The model's card, and one for each repository; only those depend on how the model is published."""
        here, config, lock = f"results/{name}", self.config, self.lock
        plot = f"report/{PLOT}"
        local = local_card_options(config, lock, name, forms, plot, sorted(shards))
        cards = {f"{here}/README.md": local}
        for repository in repositories(model):
            kind, only = repository.kind, repository.form
            if only is None or only in forms:
                own = card_options(config, lock, name, [kind], forms, only)
                cards[repository.card(name)] = own
        for path, said in cards.items():
            published = said is not local
            inputs = {"report": report, **report.inputs}
            # A repository's card counts the parts of each file; the model's own only says where they are.
            if published and FAMILIES[said["families"][0]].has_shards:
                inputs |= {f"shards {form}": artifact for form, artifact in shards.items()}
            yield Artifact(
                path,
                "card",
                name,
                {**report.options, "about": said},
                inputs=inputs,
                sources=self._template(said["template"]),
                describes=True,
                on_demand=published,
            )

    def _template(self, path: str | None) -> dict[str, Any]:
        return {"card template": lambda: {"sha256": self.contents.file(path)}} if path else {}


def is_conversion(quant: Quant, outtype: str) -> bool:
    """`- BF16` among the quants of a BF16 conversion means the conversion itself: keep, split and publish it."""
    return quant.name == quant.type == outtype


def slug(reference: str) -> str:
    """A readable and unique directory name for a model reference: org--name-1f3c9a."""
    short = hashlib.sha256(reference.encode()).hexdigest()[:6]
    words = [part for part in Path(reference).parts if part not in ("/", ".", "..", "~")]
    return f"{'--'.join(words)}-{short}".replace("@", "-at-")

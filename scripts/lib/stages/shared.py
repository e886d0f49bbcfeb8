"""The artifacts that models of a config can share: sources, texts, tools and merges.

Nothing is built here. The disk is read only for what recipes contain: the content of outside files
(`Contents`) and the versions of tools.
"""

from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from lib.hub.lock import Lock
from lib.record.artifact import Artifact
from lib.record.contents import Contents
from lib.record.tools import llama_version
from lib.stages import demo, sources, studies
from lib.stages.merge import of_model
from lib.stages.moe import moe
from lib.studies.lock import Chosen


class Shared:
    """Declares each shared artifact when it is first asked for.

    config: lib/config/schema.Config.
    """

    def __init__(self, config: Any, contents: Contents, lock: Lock):
        self.config, self.contents, self.lock = config, contents, lock
        self._known: dict[str, Artifact] = {}
        self._studies: dict[str, studies.Declared] = {}

    def find(self, path: str) -> Artifact | None:
        """The shared artifact at `path`; None if nothing has asked for it yet."""
        return self._known.get(path)

    def once(self, path: str, rule: str, options: dict[str, Any], **details: Any) -> Artifact:
        """The artifact at `path`: the first call declares it, later ones return the same object.

        details: further fields of Artifact; without `intermediate` it is an intermediate.
        """
        if path not in self._known:
            details = {"intermediate": True} | details
            model = details.pop("model", None)
            self._known[path] = Artifact(path, rule, model, options, **details)
        return self._known[path]

    @cached_property
    def llama_cpp(self) -> Artifact:
        """llama.cpp's converter and compiled tools.

        Recipes of other artifacts contain its version, and not where or how it was built.
        """
        built = self.config.llama_cpp
        return self.once(
            "resources/llama.cpp",
            "llama_cpp",
            {"path": built.path, "cuda": built.cuda, "portable": built.portable},
            tools={"llama.cpp": self.llama_version},
            directory=True,
            links=True,
        )

    @cached_property
    def llama_version(self) -> str:
        """The version of llama.cpp that the config asks for."""
        return llama_version(self.config.llama_cpp.path, self.contents)

    def by_llama_cpp(self) -> dict[str, Any]:
        """Fields of Artifact for a step that runs llama.cpp: `tools` (its version) and `uses`."""
        return {"tools": {"llama.cpp": self.llama_version}, "uses": {"llama.cpp": self.llama_cpp}}

    def corpus(self, name: str, suffix: str = ".txt") -> Artifact:
        """The text `name` of the config as a file of its own. suffix: .txt or .parquet."""
        return sources.corpus(self, name, suffix)

    def weights(self, reference: str, allow_pickle: bool = False) -> Artifact:
        """The model directory of a reference: a model of the config, a directory or a hub id.

        allow_pickle: take .bin and .pt weights too.
        """
        if reference in self.config.models:
            model = self.config.models[reference]
            if model.merge is not None:
                return of_model(self, reference, model)
            if model.moe is not None:
                return moe(self, reference, model)
            return self.weights(model.source, model.allow_pickle)
        plain = str(PurePosixPath(reference))
        if plain.startswith(f"{demo.PLACE}/"):
            return demo.model(self, PurePosixPath(plain).name)
        return sources.source(self, reference, allow_pickle)

    def same_merge(
        self, place: str, merge: dict[str, Any], random_seed: int | None, allow_pickle: bool
    ) -> Artifact | None:
        """The merge of the first model of the config with the same recipe; None if there is none.

        place: of the merge that asks; of the config's models only those before it count.
        random_seed: None for a method that does not draw.
        """
        for name, model in self.config.models.items():
            if name == place:
                return None
            seed = model.random_seed if random_seed is not None else None
            same = (model.merge, seed, model.allow_pickle) == (merge, random_seed, allow_pickle)
            if same and name not in self.config.waiting:
                return self.weights(name)
        return None

    def study(self, name: str) -> studies.Declared:
        """The artifacts of a study of the config."""
        if name not in self._studies:
            chosen = self.config.chosen.get(name, Chosen())
            self._studies[name] = studies.Declared(self, name, self.config.studies[name], chosen)
        return self._studies[name]

    def own_file(self, path: str, rule: str, model: str, file: str, **details: Any) -> Artifact:
        """An artifact made from a user's file; its recipe has the file's sha256, not its path.

        file: the file's path. details: further fields of Artifact.
        """
        identity = {"file": lambda: {"sha256": self.contents.file(file)}}
        details = {"options": {}} | details
        return Artifact(path, rule, model, sources=identity, file=file, **details)

"""What the models of a config share: sources, texts, tools, and the merges that others are made of.

Pure: nothing is built here or asked of the disk, but for the content of outside files (`Contents`)
and the versions of tools, which belong to recipes.
"""

from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from lib.hub.lock import Lock
from lib.record.artifact import Artifact
from lib.record.contents import Contents
from lib.record.tools import llama_version
from lib.stages import demo, sources
from lib.stages.merge import merge


class Shared:
    """Makes each shared artifact when it is first asked for.

    config: lib/config/schema.Config.
    """

    def __init__(self, config: Any, contents: Contents, lock: Lock):
        self.config, self.contents, self.lock = config, contents, lock
        self._known: dict[str, Artifact] = {}

    def find(self, path: str) -> Artifact | None:
        """A shared artifact that something has asked for, by its path."""
        return self._known.get(path)

    def once(self, path: str, rule: str, options: dict[str, Any], **details: Any) -> Artifact:
        """The artifact of a path, made at the first call. details: fields of Artifact."""
        if path not in self._known:
            details = {"intermediate": True} | details
            model = details.pop("model", None)
            self._known[path] = Artifact(path, rule, model, options, **details)
        return self._known[path]

    @cached_property
    def llama_cpp(self) -> Artifact:
        """The converter and the compiled tools.

        Recipes of what they make hold their version, not where or how they were built.
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
        """What every step of llama.cpp's has: its version in the recipe, its tools at hand."""
        return {"tools": {"llama.cpp": self.llama_version}, "uses": {"llama.cpp": self.llama_cpp}}

    def corpus(self, name: str, suffix: str = ".txt") -> Artifact:
        """A text of the config, plain or as parquet, under a path that follows from its name."""
        return sources.corpus(self, name, suffix)

    def weights(self, reference: str, allow_pickle: bool = False) -> Artifact:
        """The model directory that a name of the config, a directory or a hub id stands for."""
        if reference in self.config.models:
            model = self.config.models[reference]
            if model.merge is not None:
                return merge(self, reference, model)
            return self.weights(model.source, model.allow_pickle)
        plain = str(PurePosixPath(reference))
        if plain.startswith(f"{demo.PLACE}/"):
            return demo.model(self, PurePosixPath(plain).name)
        return sources.source(self, reference, allow_pickle)

    def own_file(self, path: str, rule: str, model: str, file: str, **details: Any) -> Artifact:
        """What is made of a file of the user's own: its content decides, not its path or date."""
        identity = {"file": lambda: {"sha256": self.contents.file(file)}}
        return Artifact(path, rule, model, {}, sources=identity, file=file, **details)

"""Predict how large an artifact will be, before it is made.

The first number that is known counts: the prediction of the stage (from a tool's dry run, from the
tensors' names and shapes, or from the lock if a model was not downloaded yet); the size of the last
build; the typical size of the stage.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from lib.formats.mixture import Dims
from lib.formats.weights import Weights, gguf_tensors, read_weights
from lib.hub.lock import Lock
from lib.planning.graph import Graph
from lib.record import recipe as recipes
from lib.record.artifact import Artifact
from lib.stages.registry import STAGES
from lib.stages.stage import Size, directory_size


@dataclass
class Sizes:
    """The sizes of a graph's artifacts, each computed once. See lib/stages/stage.Sizing."""

    graph: Graph
    lock: Lock
    _sizes: dict[tuple[str, bool], Size] = field(default_factory=dict)
    _weights: dict[str, Weights | None] = field(default_factory=dict)
    _tensors: dict[str, dict[str, Dims]] = field(default_factory=dict)

    def of(self, artifact: Artifact, built: bool = True) -> Size:
        """The size of an artifact: predicted if it is built anew, else from its record."""
        key = (artifact.path, built)
        if key not in self._sizes:
            record = None if built else recipes.read(artifact.path)
            known = Size(record.bytes, "made") if record else self._predicted(artifact)
            self._sizes[key] = known
        return self._sizes[key]

    def now(self, artifact: Artifact) -> Size:
        """The size of an artifact on disk, or the predicted one if it is not there yet."""
        return self.of(artifact, built=not os.path.exists(artifact.path))

    def read_by(self, artifact: Artifact, roles: tuple[str, ...] = ()) -> int:
        """Bytes of a step's inputs; a link counts as the files that it leads to.

        roles: the inputs that count; `model` also means `model NAME`. Empty: all inputs.
        """
        return sum(map(self.content, artifact.inputs_in(roles)))

    def content(self, artifact: Artifact) -> int:
        """Bytes of an artifact now; a link counts as the files that it leads to."""
        linked = directory_size(artifact, self) if artifact.links and artifact.directory else None
        return (linked or self.now(artifact)).bytes

    def _predicted(self, artifact: Artifact) -> Size:
        stage = STAGES[artifact.rule]
        if (found := stage.size(artifact, self)) is not None:
            return found
        record = recipes.read(artifact.path)
        return Size(record.bytes, "last time") if record else Size(stage.typical, "guess")

    def weights(self, artifact: Artifact) -> Weights | None:
        """The tensors of a model directory: predicted by its stage, else read; None if unknown."""
        if artifact.path not in self._weights:
            found = STAGES[artifact.rule].weights(artifact, self)
            if found is None and Path(artifact.path, "config.json").is_file():
                found = read_weights(Path(artifact.path))
            self._weights[artifact.path] = found
        return self._weights[artifact.path]

    def tensors(self, artifact: Artifact) -> dict[str, Dims]:
        """{tensor's name in GGUF: shape, the row's width first}; empty if they are unknown."""
        if artifact.path not in self._tensors:
            found = STAGES[artifact.rule].tensors(artifact, self)
            if found is None:
                weights = self.weights(artifact)
                found = dict(gguf_tensors(weights)) if weights else {}
            self._tensors[artifact.path] = found
        return self._tensors[artifact.path]

    def download(self, artifact: Artifact) -> int:
        """Bytes of weights by the lock, for a model that is not on disk; 0 if unknown."""
        return STAGES[artifact.rule].download(artifact, self)

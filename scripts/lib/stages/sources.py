"""Models and texts from outside: directories, files, URLs and the hub."""

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Any

from lib.formats.merge_references import reference_kind
from lib.formats.weights import Weights, read_weights
from lib.hub.lock import HubSource
from lib.record.artifact import Artifact
from lib.record.bound import Bound
from lib.stages import demo
from lib.stages.stage import Counted, Size, Sizing, Stage, TakenStage

WEIGHTS = (".safetensors", ".bin")


class SourceStage(TakenStage):
    """Link to a model's weights, config and tokenizer."""

    rule = "source"
    # huggingface_hub (2.4.0) writes "Reconstructing (incomplete total...):  42%|████".
    counted = Counted(r"Reconstructi[^|]*: +(\d+)%\|")

    def size(self, artifact: Artifact, sizes: Sizing) -> Size:
        """Bytes that must still be downloaded into the hub's cache; 0 for a directory."""
        locked = sizes.lock.get(reference(artifact))
        if locked is None:
            return Size(0, "lock")
        home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
        hub = os.environ.get("HF_HUB_CACHE") or f"{home}/hub"
        repository = f"models--{locked.repo.replace('/', '--')}"
        cached = Path(hub, repository, "snapshots", locked.commit)
        missing = (f.size for name, f in locked.files.items() if not (cached / name).exists())
        return Size(sum(missing), "lock")

    def weights(self, artifact: Artifact, sizes: Sizing) -> Weights | None:
        """The tensors of the directory that it links to; None for a hub id."""
        place = Path(reference(artifact))
        local = reference_kind(reference(artifact)) == "directory"
        return read_weights(place) if local and (place / "config.json").is_file() else None

    def download(self, artifact: Artifact, sizes: Sizing) -> int:
        """The sum of the weight files' sizes in the lock; 0 if the model is not locked."""
        locked = sizes.lock.get(reference(artifact))
        files = locked.files.items() if locked else ()
        return sum(file.size for name, file in files if name.endswith(WEIGHTS))


class CorpusStage(Stage):
    """Copy a text to a path of its own."""

    rule = "corpus"
    bound = Bound.ANYWHERE
    typical = 400_000

    def size(self, artifact: Artifact, sizes: Sizing) -> Size | None:
        """The size of the text's file; None if it is not on this machine."""
        corpus = sizes.graph.config.corpora[Path(artifact.path).stem]
        try:
            return Size(os.path.getsize(corpus.path), "tensors") if corpus.path else None
        except OSError:
            return None


STAGES = (SourceStage(), CorpusStage())


def reference(artifact: Artifact) -> str:
    """The directory or hub id of a source artifact, as the config writes it."""
    return next(iter(artifact.sources), "").removeprefix("model ")


def source(shared: Any, reference: str, allow_pickle: bool) -> Artifact:
    """Declare a model from a directory or from the hub. reference: as the config writes it."""

    local = reference_kind(reference) == "directory"
    if local:
        shared.contents.expect(reference, allow_pickle)

    def identity() -> dict[str, str]:
        if local:
            return shared.contents.directory(reference, allow_pickle)
        return shared.lock.identity(reference)

    return shared.once(
        f"resources/models/{slug(reference)}",
        "source",
        {"allow_pickle": True} if allow_pickle else {},
        sources={f"model {reference}": identity},
        directory=True,
        links=True,
    )


def slug(reference: str) -> str:
    """A readable and unique directory name for a model reference: org--name-1f3c9a."""
    short = hashlib.sha256(reference.encode()).hexdigest()[:6]
    words = [part for part in Path(reference).parts if part not in ("/", ".", "..", "~")]
    return f"{'--'.join(words)}-{short}".replace("@", "-at-")


def corpus(shared: Any, name: str, suffix: str) -> Artifact:
    """Declare a text of the config. suffix: .txt or .parquet, to which it is converted."""
    section = shared.config.corpora[name]
    options = {"from": PurePosixPath(section.origin()).suffix, "to": suffix}
    details: dict[str, Any] = {}
    if section.path and section.path.removeprefix("./").startswith(f"{demo.PLACE}/text/"):
        details["inputs"] = {"text": demo.text(shared)}
        options["file"] = PurePosixPath(section.path).name
    else:
        details["sources"] = {f"corpus {name}": lambda: corpus_identity(shared, section)}
    return shared.once(f"resources/corpora/{name}{suffix}", "corpus", options, **details)


def calibration(form: Artifact) -> dict[str, Artifact]:
    """{"calibration PATH": text}: the texts that decided a form, as inputs of its evaluation."""
    found = {}
    for up in form.inputs.values():
        found |= {f"calibration {up.path}": up} if up.rule == CorpusStage.rule else calibration(up)
    return found


def corpus_identity(shared: Any, section: Any) -> dict[str, str]:
    """The entry for a text in recipes: its sha256, and for a hub dataset the file's name."""
    if section.path:
        return {"sha256": shared.contents.file(section.path)}
    if section.url:
        return {"sha256": section.sha256}
    return shared.lock.identity(HubSource(section.reference(), "dataset", section.file))


def corpus_origin(section: Any) -> list[str]:
    """Where a text comes from, as the flags of scripts/fetch_corpus.py."""
    if section.path:
        return ["--path", section.path]
    if section.url:
        return ["--url", section.url, "--sha256", section.sha256]
    return ["--hub", section.reference(), "--file", section.file]

"""How large an artifact will be, before it is made.

From the best that there is: for a quant, `llama-quantize --dry-run` where its input lies there; else the tensors' names
and shapes (the headers of the model's safetensors) and the mixture of its type (lib/formats/mixture.py); else, where a model
was not fetched yet, the size of its files in the lock and the type's usual bits per weight; else what it was last time.
"""

import math
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from lib.flags.quantize import quantize_flags
from lib.formats.fallbacks import Fallbacks, planned, shape_of
from lib.formats.merge_references import merge_references
from lib.formats.mixture import Dims, Shape, quant_bytes, quant_types
from lib.formats.quants import QUANT_TYPES
from lib.formats.weights import (
    DTYPE_BYTES,
    Weights,
    gguf_tensors,
    header_bytes,
    is_matrix,
    layer_ranges,
    llama_weights,
    read_weights,
    stacked,
)
from lib.hub.lock import Lock
from lib.planning.graph import Artifact, Graph
from lib.record import recipe as recipes

OUTTYPE_BITS = {"f32": 32.0, "q8_0": 8.5}
# What has no formula, and is small.
SMALL = {
    "evaluate": 1_000,
    "exl2_evaluate": 1_000,
    "report": 40_000,
    "card": 4_000,
}
SMALL |= {"demo_text": 4_200_000, "exl2_measure": 1_000_000}
# The demo's models: what scripts/demo_train.py makes by default.
DEMO = {"layers": 4, "hidden": 256, "ffn": 768, "vocabulary": 2048, "heads": 4, "kv_heads": 2}
# Characters of one token: vocabularies of 2,000 words cut finer than those of 100,000.
BYTES_PER_TOKEN = ((10_000, 2.4), (60_000, 3.3), (math.inf, 3.8))


@dataclass(frozen=True)
class Size:
    """Bytes, and where they are known from: "made", "dry run", "tensors", "lock", "last time", "guess"."""

    bytes: int
    source: str


@dataclass
class Sizes:
    """The sizes of a graph's artifacts, each worked out once."""

    graph: Graph
    lock: Lock
    tools: str = "resources/llama.cpp/bin"
    _sizes: dict[str, Size] = field(default_factory=dict)
    _weights: dict[str, Weights | None] = field(default_factory=dict)
    _tensors: dict[str, dict[str, Dims]] = field(default_factory=dict)
    _headers: dict[str, int] = field(default_factory=dict)

    def of(self, artifact: Artifact, built: bool = True) -> Size:
        """The size of an artifact: as its record says if it is not to be built, else as predicted."""
        if artifact.path not in self._sizes:
            self._sizes[artifact.path] = (
                self._measured(artifact) if not built else self._predicted(artifact)
            )
        return self._sizes[artifact.path]

    def _measured(self, artifact: Artifact) -> Size:
        record = recipes.read(artifact.path)
        return Size(record.bytes, "made") if record else self._predicted(artifact)

    def _predicted(self, artifact: Artifact) -> Size:
        answer = getattr(self, f"_{artifact.rule}", lambda artifact: None)(artifact)
        if answer is not None:
            return answer
        if artifact.rule in SMALL:
            return Size(SMALL[artifact.rule], "guess")
        record = recipes.read(artifact.path)
        return Size(record.bytes, "last time") if record else Size(0, "guess")

    # one method a rule; None where nothing is known

    def _llama_cpp(self, artifact: Artifact) -> Size:
        return Size(0, "tensors")  # links into the cache

    def _source(self, artifact: Artifact) -> Size | None:
        return Size(self._download(artifact), "lock")

    def _download(self, artifact: Artifact) -> int:
        """Bytes that are still to be fetched from the hub, into its cache; 0 for a directory of the user's own."""
        entry = self.lock.get(_reference(artifact))
        if entry is None:
            return 0
        home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
        hub = os.environ.get("HF_HUB_CACHE") or f"{home}/hub"
        cached = Path(hub, f"models--{entry.repo.replace('/', '--')}", "snapshots", entry.commit)
        return sum(file.size for name, file in entry.files.items() if not (cached / name).exists())

    def _corpus(self, artifact: Artifact) -> Size | None:
        corpus = self.graph.config.corpora[Path(artifact.path).stem]
        try:
            return Size(os.path.getsize(corpus.path), "tensors") if corpus.path else None
        except OSError:
            return Size(400_000, "guess") if artifact.inputs else None

    def _demo_base(self, artifact: Artifact) -> Size:
        return self._directory(artifact)

    _demo_finetune = _demo_base

    def _merge(self, artifact: Artifact) -> Size | None:
        return self._directory(artifact)

    def _directory(self, artifact: Artifact) -> Size | None:
        weights = self.weights(artifact)
        if weights is None:
            size = self._files_size(artifact)
            return Size(size, "lock") if size else None
        return Size(
            round(weights.parameters * weights.bytes_per_weight) + weights.side_files, "tensors"
        )

    def _source_gguf(self, artifact: Artifact) -> Size:
        return Size(os.path.getsize(artifact.file), "tensors")

    def _imatrix_file(self, artifact: Artifact) -> Size:
        return Size(os.path.getsize(artifact.file), "tensors")

    _exl2_measurement_file = _imatrix_file

    def _convert(self, artifact: Artifact) -> Size | None:
        bits = OUTTYPE_BITS.get(artifact.options["outtype"], 16.0)
        weights = self.weights(artifact.inputs["model"])
        if weights is None:
            size = self._files_size(artifact.inputs["model"])
            return Size(round(size * bits / 16), "lock") if size else None
        tensors = self.tensors(artifact.inputs["model"])
        data = sum(
            math.prod(dims) * (bits if is_matrix(name, dims) else 32) / 8
            for name, dims in tensors.items()
        )
        return Size(round(data) + header_bytes(weights, len(tensors)), "tensors")

    def _quantize(self, artifact: Artifact) -> Size | None:
        return self._dry_run(artifact) or self._by_mixture(artifact)

    def _by_mixture(self, artifact: Artifact) -> Size | None:
        conversion = artifact.inputs["gguf"]
        type_, options = artifact.options["type"], artifact.options
        material = self._material(artifact)
        if material is None:
            size = self._files_size(conversion.inputs["model"])
            return Size(round(size / 2 * QUANT_TYPES[type_].bpw / 8), "lock") if size else None
        tensors, shape, header, bits = material
        types = quant_types(tensors, shape, type_, options, "imatrix" in artifact.inputs)
        return Size(quant_bytes(tensors, types, bits.items()) + header, "tensors")

    def _material(
        self, artifact: Artifact
    ) -> tuple[dict[str, Dims], Shape, int, dict[str, float]] | None:
        """Of a quant: tensors by name, the model's shape, bytes of the header, bits per weight unquantized.

        None where nothing but the size of the model's files is known.
        """
        conversion = artifact.inputs["gguf"]
        if conversion.rule == "source_gguf":
            from lib.formats.gguf_file import read_gguf

            file = read_gguf(Path(conversion.file))
            tensors, shape = self._quantized(artifact, conversion), shape_of(file.metadata)
            header = min(tensor.offset for tensor in file.tensors)
            bits = {tensor.name: 8 * tensor.size / tensor.elements for tensor in file.tensors}
            return tensors, shape, header, bits
        model = conversion.inputs["model"]
        weights = self.weights(model)
        if weights is None:
            return None
        tensors = self._quantized(artifact, model)
        wide = OUTTYPE_BITS.get(conversion.options["outtype"], 16.0)
        bits = {name: wide if is_matrix(name, dims) else 32.0 for name, dims in tensors.items()}
        return tensors, weights.shape, header_bytes(weights, len(tensors)), bits

    def _quantized(self, artifact: Artifact, model: Artifact) -> dict[str, Dims]:
        """The tensors of a quant: those of its model without the layers that it leaves out."""
        pruned = {f"blk.{layer}." for layer in artifact.options.get("prune_layers", ())}
        return {
            name: dims
            for name, dims in self.tensors(model).items()
            if name[: name.find(".", 4) + 1] not in pruned
        }

    def fallbacks(self, artifact: Artifact) -> Fallbacks | None:
        """Tensors of a quant that will have other types than its mixture's; None: none, unknown."""
        material = self._material(artifact)
        if material is None:
            return None
        tensors, shape, _, _ = material
        options = artifact.options
        return planned(tensors, shape, options["type"], options, "imatrix" in artifact.inputs)

    def _dry_run(self, artifact: Artifact) -> Size | None:
        """What llama-quantize says, where all that it reads lies there."""
        gguf, tool = artifact.inputs["gguf"].path, Path(self.tools, "llama-quantize")
        imatrix = artifact.inputs.get("imatrix")
        needed = [gguf, tool, *([imatrix.path] if imatrix else [])]
        if not all(map(os.path.isfile, needed)):
            return None
        flags = ["--imatrix", imatrix.path] if imatrix else []
        command = [
            str(tool),
            "--dry-run",
            *flags,
            *quantize_flags(artifact.options),
            gguf,
            artifact.options["type"],
        ]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.search(r"quant size\s*=\s*([\d.]+) MiB", said.stdout + said.stderr)
        if said.returncode or not found:
            return None
        if gguf not in self._headers:
            from lib.formats.gguf_file import read_gguf

            tensors = read_gguf(Path(gguf)).tensors
            self._headers[gguf] = min(tensor.offset for tensor in tensors)
        return Size(round(float(found[1]) * 2**20) + self._headers[gguf], "dry run")

    def _imatrix(self, artifact: Artifact) -> Size | None:
        model = _weights_of(artifact.inputs["gguf"])
        if model.rule != "source_gguf" and self.weights(model) is None:
            return None
        rows = [
            (name, dims)
            for name, dims in self.tensors(model).items()
            if name.startswith("blk.") and len(dims) > 1
        ]
        floats = sum(dims[0] * (dims[2] if len(dims) > 2 else 1) for _, dims in rows)
        return Size(4 * floats + 34 * len(rows), "tensors")

    def _split(self, artifact: Artifact) -> Size:
        whole = self._label(artifact)
        limit = artifact.options["split_max_size"]
        if whole.bytes <= int(limit[:-1]) * {"M": 10**6, "G": 10**9}[limit[-1]]:
            return Size(0, whole.source)  # a link to it
        return whole

    def _label(self, artifact: Artifact) -> Size:
        return self.of(artifact.inputs["gguf"], built=not _is_there(artifact.inputs["gguf"]))

    def _base_logits(self, artifact: Artifact) -> Size | None:
        conversion = artifact.inputs["gguf"]
        model = _weights_of(conversion)
        vocabulary = 128_256  # of a model that is not fetched yet
        if model.rule == "source_gguf" or self.weights(model) is not None:
            tensors = self.tensors(model)
            vocabulary = tensors.get("token_embd.weight", (0, vocabulary))[1]
        context, chunks = artifact.options["context"], artifact.options.get("chunks")
        text = artifact.inputs["corpus"]
        per_token = next(size for limit, size in BYTES_PER_TOKEN if vocabulary < limit)
        available = self.of(text, built=not _is_there(text)).bytes / per_token / context
        chunks = max(1, min(chunks or math.inf, math.floor(available)))
        return Size(
            base_logits_bytes(chunks, context, vocabulary),
            "tensors" if artifact.options.get("chunks") else "guess",
        )

    def _exl2_quantize(self, artifact: Artifact) -> Size | None:
        weights = self.weights(artifact.inputs["model"])
        if weights is None:
            size = self._files_size(artifact.inputs["model"])
            return Size(round(size / 16 * artifact.options["bits"]), "lock") if size else None
        tensors = self.tensors(artifact.inputs["model"])
        embedding = math.prod(tensors.get("token_embd.weight", (0,)))
        body = weights.parameters - embedding
        head = math.prod(tensors["output.weight"]) if "output.weight" in tensors else 0
        bits = (
            16 * embedding
            + artifact.options["head_bits"] * head
            + artifact.options["bits"] * (body - head)
        )
        return Size(round(bits / 8) + weights.side_files, "tensors")

    # what a model directory holds

    def tensors(self, artifact: Artifact) -> dict[str, Dims]:
        """{GGUF's name: shape, the row's width first} of the weights of a model that is known."""
        if artifact.path not in self._tensors and artifact.rule == "source_gguf":
            from lib.formats.gguf_file import read_gguf

            tensors = read_gguf(Path(artifact.file)).tensors
            self._tensors[artifact.path] = {tensor.name: tensor.shape for tensor in tensors}
        elif artifact.path not in self._tensors:
            weights = self.weights(artifact)
            self._tensors[artifact.path] = dict(gguf_tensors(weights))
        return self._tensors[artifact.path]

    def weights(self, artifact: Artifact) -> Weights | None:
        """The tensors of a model directory, from itself or from what it is to be made from; None if unknown."""
        if artifact.path not in self._weights:
            self._weights[artifact.path] = self._find_weights(artifact)
        return self._weights[artifact.path]

    def _find_weights(self, artifact: Artifact) -> Weights | None:
        if artifact.rule == "merge":
            return self._merged(artifact)
        places = [Path(artifact.path)]
        if artifact.rule == "source" and _reference(artifact).startswith((".", "/", "~")):
            places.insert(0, Path(_reference(artifact)))
        for place in places:
            if (place / "config.json").is_file():
                return read_weights(place)
        return llama_weights(**DEMO) if artifact.rule.startswith("demo_") else None

    def _merged(self, artifact: Artifact) -> Weights | None:
        merge = artifact.options["merge"]
        first = merge_references(merge)[0].parts[0]
        up = artifact.inputs.get(f"model {first}")
        like = self.weights(up) if up else None
        if like is None:
            return None
        wide = DTYPE_BYTES.get(merge.get("out_dtype") or merge.get("dtype"), like.bytes_per_weight)
        tensors, shape = like.tensors, like.shape
        if merge.get("slices"):
            tensors = dict(stacked(merge["slices"], tensors))
            layers = sum(b - a for a, b in layer_ranges(merge["slices"]))
            shape = Shape(layers, shape.sharing, shape.experts, shape.family)
        return Weights(tensors, shape, wide, like.tokenizer, like.side_files)

    def _files_size(self, artifact: Artifact) -> int:
        """Bytes of weights in the lock, of a model or of what a merge is like; 0 if unknown."""
        if artifact.rule == "merge":
            first = merge_references(artifact.options["merge"])[0].parts[0]
            up = artifact.inputs.get(f"model {first}")
            return self._files_size(up) if up else 0
        entry = self.lock.get(_reference(artifact)) if artifact.rule == "source" else None
        if entry is None:
            return 0
        return sum(
            f.size for name, f in entry.files.items() if name.endswith((".safetensors", ".bin"))
        )


def base_logits_bytes(chunks: int, context: int, vocabulary: int) -> int:
    """What llama-perplexity --kl-divergence-base writes: of the second half of each chunk all logits in 16 bits."""
    scored = context - 1 - context // 2
    return chunks * (scored * (2 * ((vocabulary + 1) // 2) + 4) * 2 + 4 * context) + 20


def _weights_of(conversion: Artifact) -> Artifact:
    """What tells an unquantized GGUF's tensors: the model's directory, or a file of the user's."""
    return conversion.inputs.get("model", conversion)


def _is_there(artifact: Artifact) -> bool:
    return os.path.exists(artifact.path)


def _reference(artifact: Artifact) -> str:
    """What a source stands for, as the config writes it."""
    return next(iter(artifact.sources), "").removeprefix("model ")

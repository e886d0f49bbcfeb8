"""What can be compared of fine-tunes and their base, by the headers of their files.

A fine-tune's *task vector* is its weights less those of the base. Here is found which tensors all
models have, which rows of embeddings stand for the same tokens, and where the bytes lie. Reads
headers and tokenizers alone, so what does not fit is said before hours of reading.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lib.errors import UserError
from lib.formats.model_files import model_files
from lib.formats.safetensors import read_header

# {type of a safetensors file: bytes of a weight}
FLOATS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
# Tensors with a row for each token.
BY_TOKEN = re.compile(
    r"(^|\.)(embed_tokens|tok_embeddings|word_embeddings|wte|embed_in|embed_out|lm_head)"
    r"\.(weight|bias)$"
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_IN_LAYER = re.compile(r"(.+?)\.(\d+)\.(.+)")


class Place(NamedTuple):
    """Where a tensor stands in its model.

    stack: what its layers are called, such as `model.layers`; empty for a tensor in no layer.
    layer: its layer's number. kind: its name in its layer, without the numbers of experts.
    """

    stack: str
    layer: int | None
    kind: str


class Stored(NamedTuple):
    """Where a tensor's bytes are. dtype: of FLOATS. offset: from the beginning of the file."""

    file: Path
    dtype: str
    offset: int


class Run(NamedTuple):
    """Neighbouring rows that are compared.

    firsts: the first row in each model, the base's first. count: of rows.
    """

    firsts: tuple[int, ...]
    count: int


class Compared(NamedTuple):
    """A tensor that all models have.

    columns: weights in a row; a tensor that is no matrix is one row of all its weights. runs: the
    rows. stored: for each model, the base first. is_matrix: whether it has two dimensions.
    """

    name: str
    place: Place
    columns: int
    runs: tuple[Run, ...]
    stored: tuple[Stored, ...]
    is_matrix: bool

    @property
    def rows(self) -> int:
        """The number of rows that are compared."""
        return sum(run.count for run in self.runs)

    @property
    def weights(self) -> int:
        """The number of weights that are compared, in each model."""
        return self.rows * self.columns


@dataclass
class Comparison:
    """What is compared of a base and its fine-tunes.

    models: their names, the base first. tensors: in the order of the base's files. base_weights:
    all weights of the base. notes: what was left out and why, a sentence each.
    """

    models: list[str]
    tensors: list[Compared]
    base_weights: int
    notes: list[str] = field(default_factory=list)


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    stored: Stored


class _Model(NamedTuple):
    name: str
    tensors: dict[str, _Tensor]
    tokens: dict[str, int] | None  # {token: its number}; None: its files do not tell
    tokenizer: dict[str, str]  # {file that holds one: its sha256}; empty: there is none


def compare(models: Sequence[tuple[str, Path]]) -> Comparison:
    """Find what can be compared. models: [(name, directory)], the base first.

    Raises UserError if a file is damaged, or no safetensors file; if models have no tensor in
    common; or if a tensor has another shape in one of them (more or fewer rows of embeddings are
    none).
    """
    base, *tunes = found = [_read(name, directory) for name, directory in models]
    weights = sum(_size(tensor.shape) for tensor in base.tensors.values())
    comparison = Comparison([name for name, _ in models], [], weights)
    aligned = _Alignment(found)
    left: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for model in found for name in model.tensors):
        lacking = [model.name for model in found if name not in model.tensors]
        if lacking:
            left.setdefault(f"{' and '.join(lacking)} lack it", []).append(name)
            continue
        tensors = [model.tensors[name] for model in found]
        other = next((t.stored.dtype for t in tensors if t.stored.dtype not in FLOATS), None)
        if other:
            left.setdefault(f"its numbers are {other}", []).append(name)
            continue
        runs = aligned.runs(name, [tensor.shape for tensor in tensors])
        if not runs:
            left.setdefault("which rows stand for the same token is not known", []).append(name)
            continue
        shape = base.tensors[name].shape
        is_matrix = len(shape) == 2
        columns = shape[1] if is_matrix else _size(shape[BY_TOKEN.search(name) is not None :])
        stored = tuple(tensor.stored for tensor in tensors)
        tensor = Compared(name, place_of(name), columns, tuple(runs), stored, is_matrix)
        if tensor.weights:  # some checkpoints hold empty ones
            comparison.tensors.append(tensor)
    names = ", ".join(model.name for model in tunes)
    if not comparison.tensors:
        raise UserError(f"{base.name} has no tensor in common with {names}: it is not their base")
    comparison.tensors.sort(key=lambda t: (t.stored[0].file.name, t.stored[0].offset))
    comparison.notes = [*aligned.notes(), *map(_left_out, left.items())]
    return comparison


def place_of(name: str) -> Place:
    """The place of a tensor by its name in a model directory, as model.layers.3.mlp.up_proj.weight.

    The first number in a name is the layer's.
    """
    plain = name.removesuffix(".weight")
    found = _IN_LAYER.fullmatch(plain)
    if not found:
        return Place("", None, plain.removeprefix("model."))
    return Place(found[1], int(found[2]), re.sub(r"\.\d+(?=\.|$)", "", found[3]))


def _left_out(entry: tuple[str, list[str]]) -> str:
    why, names = entry
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}: not compared, {why}"


def _read(name: str, directory: Path) -> _Model:
    """A model by the headers of its safetensors files and its tokenizer."""
    tensors = {}
    files = [f for f in model_files(directory, allow_pickle=True) if f.suffix == ".safetensors"]
    if not files:
        raise UserError(f"{name} has no safetensors files, and nothing else can be compared")
    for file in files:
        header = read_header(file)
        for tensor, told in header.tensors.items():
            stored = Stored(file, told.dtype, header.start + told.first)
            tensors[tensor] = _Tensor(told.shape, stored)
    tokenizers = [directory / kind for kind in TOKENIZERS if (directory / kind).is_file()]
    tokens = next((_tokens(file) for file in tokenizers if file.suffix == ".json"), None)
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tokenizers}
    return _Model(name, tensors, tokens, digests)


def _tokens(file: Path) -> dict[str, int]:
    """{token: its number} of a tokenizer.json. Raises UserError if it is none."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        known = document["model"]["vocab"]
        if not isinstance(known, dict):  # of a Unigram model: [[token, score]]
            known = {token: number for number, (token, _) in enumerate(known)}
        return known | {t["content"]: t["id"] for t in document.get("added_tokens") or ()}
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{file}: it is no tokenizer") from None


class _Alignment:
    """Which rows of embeddings stand for the same token in all models."""

    def __init__(self, models: list[_Model]) -> None:
        self._models = models
        base, *tunes = models
        told = [m for m in models if m.tokenizer]
        self._without = [m.name for m in models if not m.tokenizer] if told else []
        others = [m for m in tunes if not m.tokenizer.items() & base.tokenizer.items()]
        both = [m for m in others if m.tokenizer and base.tokenizer]
        self._unknown = [m.name for m in both if m.tokens is None or base.tokens is None]
        self._moved = {
            m.name: moved
            for m in both
            if base.tokens and m.tokens and (moved := _moved(base.tokens, m.tokens))
        }
        self._cut: dict[str, tuple[int, ...]] = {}

    def runs(self, name: str, shapes: list[tuple[int, ...]]) -> list[Run]:
        """The rows of a tensor that are compared; none if it is not known which belong together.

        shapes: in each model. Raises UserError if they differ in more than the number of tokens.
        """
        base = self._models[0]
        by_token = BY_TOKEN.search(name) is not None
        for model, shape in zip(self._models, shapes, strict=True):
            cut = 1 if by_token else 0
            if len(shape) != len(shapes[0]) or shape[cut:] != shapes[0][cut:]:
                raise UserError(
                    f"{name} is {_shown(shape)} in {model.name}, {_shown(shapes[0])} in "
                    f"{base.name}: {model.name} was not made from {base.name}"
                )
        if not by_token:
            return [Run((0,) * len(shapes), shapes[0][0] if len(shapes[0]) == 2 else 1)]
        if self._unknown:
            return []
        rows = tuple(shape[0] for shape in shapes)
        if self._moved:
            return list(self._by_token(rows))
        if len(set(rows)) > 1:
            self._cut[name] = rows
        return [Run((0,) * len(shapes), min(rows))]

    def _by_token(self, rows: tuple[int, ...]) -> Iterator[Run]:
        """Runs of the base's tokens that all models have. rows: of the tensor in each model."""
        known = [model.tokens or self._models[0].tokens for model in self._models]
        run: Run | None = None
        for token in sorted(known[0], key=known[0].get):
            numbers = tuple(tokens.get(token, -1) for tokens in known)
            if not all(0 <= number < most for number, most in zip(numbers, rows, strict=True)):
                continue
            if run and numbers == tuple(first + run.count for first in run.firsts):
                run = Run(run.firsts, run.count + 1)
                continue
            if run:
                yield run
            run = Run(numbers, 1)
        if run:
            yield run

    def notes(self) -> list[str]:
        """What differs between the tokenizers and the numbers of rows, a sentence each."""
        base = self._models[0].name
        notes = [
            f"{name} has no tokenizer: its tokens are taken to be numbered like the others'"
            for name in self._without
        ]
        notes += [
            f"{name} has another tokenizer than {base}, and which tokens differ is not told"
            for name in self._unknown
        ]
        notes += [
            f"the tokenizers differ in {moved} token{'s' * (moved > 1)} of {base} and {name}: "
            "embeddings are compared token by token"
            for name, moved in self._moved.items()
        ]
        for name, rows in self._cut.items():
            each = ", ".join(
                f"{count} in {model.name}" for count, model in zip(rows, self._models, strict=True)
            )
            notes.append(f"{name} has rows for {each}: the first {min(rows)} are compared")
        return notes


def _moved(base: dict[str, int], other: dict[str, int]) -> int:
    """How many tokens of two models have another number, or share it with another token."""
    by_number = {number: token for token, number in base.items()}
    return sum(
        base.get(token, number) != number or by_number.get(number, token) != token
        for token, number in other.items()
    )


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for dimension in shape:
        total *= dimension
    return total


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"

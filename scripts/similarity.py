"""Compare fine-tunes by what they changed of their base: their task vectors, tensor by tensor.

Writes a CSV with a row for each pair of fine-tunes in each scope: `all` tensors, each `kind` of
tensor, each `layer`, each `tensor`. Of a pair: cosine, the cosine similarity of the task vectors;
sign_conflict, the share of the weights changed by both that they change in opposite directions;
changed_both, the share of the weights that both have changed. Of each of the two, a and b: norm,
the Euclidean norm of its task vector; changed, the share of the weights that it has changed; and in
rows of matrices effective_rank, (sum of s^2)^2 / sum of s^4 over the singular values s of its task
vector, known to about 13%. weights is the number of weights compared, base_norm the norm of the
base's. A cell is empty where there is no such number: a task vector of zeros has no direction.

The same models give the same bytes, on every number of processes. Memory does not grow with them.
"""

import argparse
import csv
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

# Before numpy is loaded: its products of matrices may depend on the number of threads.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np

from lib.errors import UserError, program
from lib.formats.task_vectors import FLOATS, Compared, Comparison, Run, Stored, compare

COLUMNS = (
    *("scope", "layer", "kind", "tensor", "model_a", "model_b", "weights", "cosine"),
    *("sign_conflict", "changed_both", "changed_a", "changed_b", "norm_a", "norm_b", "base_norm"),
    *("effective_rank_a", "effective_rank_b"),
)
SEGMENT = 8 << 20  # bytes that a process reads of each model at once: disks want large pieces
BLOCK = 1 << 17  # weights that are computed with at once: these stay in the processor's cache
PROBES = 16  # random vectors for the effective rank: enough for an error of about 13%
STEPS = 50  # times that the log tells how far it is


class Segment(NamedTuple):
    """What is read at once: some rows of a tensor, as runs of neighbouring ones."""

    tensor: Compared
    runs: tuple[Run, ...]

    @property
    def weights(self) -> int:
        """The number of weights, in each model."""
        return sum(run.count for run in self.runs) * self.tensor.columns


class Sums(NamedTuple):
    """Sums over some weights, from which all figures follow.

    dots: of the task vectors, [model, model]. base: of the base's squares. weights: their number.
    changed: weights changed by both, [model, model]; conflicts: in opposite directions. probes: for
    each model the products of its images of the probes, [probe, probe]; None: not of one matrix.
    """

    dots: np.ndarray
    base: float
    weights: int
    changed: np.ndarray
    conflicts: np.ndarray
    probes: np.ndarray | None


class Measured(NamedTuple):
    """What was measured of a tensor. ranks: the effective rank of each task vector, if any."""

    tensor: Compared
    sums: Sums
    ranks: list[float | None]


def together(parts: Sequence[Sums], one_tensor: bool = False) -> Sums:
    """The sum of sums; rounded once, so that it does not depend on their order.

    one_tensor: they are of one tensor, so that those of the probes add up too.
    """
    (models, _), probes = parts[0].dots.shape, None
    if one_tensor and parts[0].probes is not None:
        probes = np.sum([part.probes for part in parts], axis=0)
    dots = [
        [math.fsum(part.dots[i, j] for part in parts) for j in range(models)] for i in range(models)
    ]
    return Sums(
        np.array(dots),
        math.fsum(part.base for part in parts),
        sum(part.weights for part in parts),
        np.sum([part.changed for part in parts], axis=0),
        np.sum([part.conflicts for part in parts], axis=0),
        probes,
    )


def segments(tensors: Iterable[Compared]) -> Iterator[Segment]:
    """Cut tensors into what is read at once. A row of a matrix is never cut."""
    for tensor in tensors:
        widest = max(FLOATS[stored.dtype] for stored in tensor.stored)
        if not tensor.is_matrix:
            tensor = _as_rows_of_one(tensor)
        most = max(1, SEGMENT // widest // max(1, tensor.columns))
        taken: list[Run] = []
        for run in tensor.runs:
            for start in range(0, run.count, most):
                taken.append(Run(_moved(run.firsts, start), min(most, run.count - start)))
                if sum(each.count for each in taken) >= most:
                    yield Segment(tensor, tuple(taken))
                    taken = []
        if taken:
            yield Segment(tensor, tuple(taken))


def _as_rows_of_one(tensor: Compared) -> Compared:
    """A tensor that is no matrix, as a column, so that it can be cut anywhere."""
    runs = [
        Run(tuple(first * tensor.columns for first in run.firsts), run.count * tensor.columns)
        for run in tensor.runs
    ]
    return tensor._replace(columns=1, runs=tuple(runs))


def _moved(firsts: tuple[int, ...], by: int) -> tuple[int, ...]:
    return tuple(first + by for first in firsts)


class Workspace:
    """The memory of one process: what it reads of each model, and one block to compute with.

    sums: what it computes of a segment.
    """

    def __init__(self, comparison: Comparison, most: int, block: int, probes: int) -> None:
        """most: bytes of a segment in one model. block: weights of a block. probes: 0 for none."""
        self.names, self.probes = comparison.models, probes
        self._drawn = ("", np.empty((0, 0)))
        self.read = [np.empty(most, np.uint8) for _ in self.names]
        self.floats = [np.empty(block, np.float32) for _ in self.names[:2]]
        self.changes = [np.empty(block) for _ in self.names[1:]]
        self.product = np.empty(block)
        self.signs = [np.empty((2, block), bool) for _ in self.names[1:]]
        self.both = np.empty(block, bool)

    def sums(self, segment: Segment) -> Sums:
        """Read a segment in all models and compute its sums.

        Raises UserError if a number is infinite or not a number.
        """
        tensor, count = segment.tensor, segment.weights
        raw = [
            self._load(segment, model, stored, buffer)
            for model, (stored, buffer) in enumerate(zip(tensor.stored, self.read, strict=True))
        ]
        step = max(1, len(self.product) // tensor.columns) * tensor.columns
        parts = [
            self._block(tensor, [each[start : start + step] for each in raw])
            for start in range(0, count, step)
        ]
        return together(parts, one_tensor=True)

    def _load(self, segment: Segment, model: int, stored: Stored, buffer: np.ndarray) -> np.ndarray:
        """Read a segment's rows of one model, as numbers of the file's type (BF16: its bits)."""
        width, at = FLOATS[stored.dtype] * segment.tensor.columns, 0
        file = os.open(stored.file, os.O_RDONLY)
        try:
            for run in segment.runs:
                place, end = stored.offset + run.firsts[model] * width, at + run.count * width
                while at < end:
                    done = os.preadv(file, [memoryview(buffer)[at:end]], place)
                    if not done:
                        raise UserError(f"{stored.file}: it was cut off while it was read")
                    at, place = at + done, place + done
        finally:
            os.close(file)
        kinds = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
        return buffer[:at].view(kinds[stored.dtype])

    def _floats(self, raw: np.ndarray, which: int) -> np.ndarray:
        """Numbers as the processor computes with them. which: of the two places for them."""
        if raw.dtype not in (np.uint16, np.float16):
            return raw
        out = self.floats[which][: len(raw)]
        if raw.dtype == np.float16:
            out[...] = raw
        else:  # BF16 is the upper half of a float32
            bits = out.view(np.uint32)
            bits[...] = raw
            bits <<= 16
        return out

    def _block(self, tensor: Compared, raw: list[np.ndarray]) -> Sums:
        """The sums of one block of whole rows. Sums are numpy's own, whose order is fixed.

        Raises UserError if a number is infinite or not a number.
        """
        count, models = len(raw[0]), len(raw) - 1
        base, product = self._floats(raw[0], 0), self.product[:count]
        changes = [change[:count] for change in self.changes]
        signs = [sign[:, :count] for sign in self.signs]
        for change, sign, numbers in zip(changes, signs, raw[1:], strict=True):
            np.subtract(self._floats(numbers, 1), base, out=change, dtype=np.float64)
            np.less(change, 0, out=sign[0])
            np.greater(change, 0, out=sign[1])
        dots = np.zeros((models, models))
        changed, conflicts = (np.zeros((models, models), np.int64) for _ in range(2))
        for i, j in itertools.combinations_with_replacement(range(models), 2):
            np.multiply(changes[i], changes[j], out=product)
            dots[i, j] = dots[j, i] = np.add.reduce(product)
            if i == j:
                changed[i, i] = np.count_nonzero(signs[i])
                continue
            same, opposite = (
                sum(self._common(signs[i][a], signs[j][b ^ a]) for a in (0, 1)) for b in (0, 1)
            )
            changed[i, j] = changed[j, i] = same + opposite
            conflicts[i, j] = conflicts[j, i] = opposite
        np.multiply(base, base, out=product, dtype=np.float64)
        squares, probes = float(np.add.reduce(product)), None
        if not math.isfinite(squares) or not np.isfinite(dots.diagonal()).all():
            self._blame(tensor, squares, dots)
        if tensor.is_matrix and self.probes:
            drawn = self._probes_of(tensor)
            images = [change.reshape(-1, tensor.columns) @ drawn for change in changes]
            probes = np.array([image.T @ image for image in images])
        return Sums(dots, squares, count, changed, conflicts, probes)

    def _probes_of(self, tensor: Compared) -> np.ndarray:
        """The probes of a matrix: each has its own, so that their errors are independent."""
        if self._drawn[0] != tensor.name:
            seed = zlib.crc32(tensor.name.encode())
            draw = np.random.RandomState(seed)  # numpy does not change what this draws
            self._drawn = (tensor.name, draw.standard_normal((tensor.columns, self.probes)))
        return self._drawn[1]

    def _common(self, one: np.ndarray, other: np.ndarray) -> int:
        """How many weights both are true of."""
        both = self.both[: len(one)]
        return int(np.count_nonzero(np.logical_and(one, other, out=both)))

    def _blame(self, tensor: Compared, squares: float, dots: np.ndarray) -> None:
        """Raise UserError with the first model in which a number of a block is not finite."""
        sums = [squares, *dots.diagonal()]
        first = [math.isfinite(each) for each in sums].index(False)
        raise UserError(f"NaN or infinity in {tensor.name} of {self.names[first]}")


def measure(comparison: Comparison, processes: int, probes: int = PROBES) -> Iterator[Measured]:
    """Yield the tensors, measured, in the order of the base's files.

    processes: that read and compute, each a segment at a time. (Threads would wait for each other:
    two of them took as long as one.) probes: for the effective rank; 0: none. Raises UserError if a
    number is infinite or not a number, if a file changes meanwhile, or a process is killed.
    """
    todo = list(segments(comparison.tensors))
    tensors = {tensor.name: tensor for tensor in comparison.tensors}
    fork, workers = get_context("fork"), []
    for first in range(processes):
        reader, writer = fork.Pipe(duplex=False)
        readers = [reader, *(earlier for _, earlier in workers)]
        work = (comparison, todo, range(first, len(todo), processes), probes, writer, readers)
        worker = fork.Process(target=_work, args=work, daemon=True)
        worker.start()
        writer.close()
        workers.append((worker, reader))
    found = (_received(*workers[n % processes]) for n in range(len(todo)))
    ordered = zip(todo, found, strict=True)
    for name, parts in itertools.groupby(ordered, lambda pair: pair[0].tensor.name):
        sums = together([sums for _, sums in parts], one_tensor=True)
        ranks = [None] * len(sums.dots)
        if sums.probes is not None:
            ranks = list(map(effective_rank, sums.probes))
        yield Measured(tensors[name], sums._replace(probes=None), ranks)


def _work(
    comparison: Comparison,
    todo: list[Segment],
    mine: range,
    probes: int,
    writer: Connection,
    readers: list[Connection],
) -> None:
    """Send the sums of some segments, in their order; or the UserError that ends them.

    readers: what it has of the program's ends of pipes. Closed here, they end with the program, and
    so does this process, as soon as it sends something.
    """
    for reader in readers:
        reader.close()
    widest = max((tensor.columns for tensor in comparison.tensors if tensor.is_matrix), default=0)
    most = max(s.weights * max(FLOATS[o.dtype] for o in s.tensor.stored) for s in todo)
    workspace = Workspace(comparison, most, max(BLOCK, widest), probes)
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is told by name
            for number in mine:
                if number + mine.step < len(todo):
                    _announce(todo[number + mine.step])
                writer.send(workspace.sums(todo[number]))
    except UserError as error:
        writer.send(error)
    except (KeyboardInterrupt, BrokenPipeError):
        pass


def _received(worker: BaseProcess, reader: Connection) -> Sums:
    """The next sums of a worker. Raises UserError if it sends one, or was killed."""
    try:
        found = reader.recv()
    except EOFError:
        worker.join()
        if worker.exitcode > 0:
            raise  # a bug of ours: its traceback was written
        text = (
            f"a process of it was ended by signal {-worker.exitcode}; is there too little memory?"
        )
        raise UserError(text) from None
    if isinstance(found, UserError):
        raise found
    return found


def _announce(segment: Segment) -> None:
    """Let the system read a segment from the disk while others are computed with."""
    if not hasattr(os, "posix_fadvise"):
        return
    first, last = segment.runs[0], segment.runs[-1]
    for model, stored in enumerate(segment.tensor.stored):
        width = FLOATS[stored.dtype] * segment.tensor.columns
        start = stored.offset + first.firsts[model] * width
        length = (last.firsts[model] + last.count - first.firsts[model]) * width
        if 0 < length <= 2 * SEGMENT:  # neighbours, and not tokens from everywhere
            file = os.open(stored.file, os.O_RDONLY)
            os.posix_fadvise(file, start, length, os.POSIX_FADV_WILLNEED)
            os.close(file)


def effective_rank(products: np.ndarray) -> float | None:
    """The effective rank of a matrix D, (sum s^2)^2 / sum s^4; None if it is zero.

    products: of the images of random vectors, (D g) · (D h), [g, h]. Of two of them the squared
    cosine is 1 / rank in the mean, which is exact for one of rank 1.
    """
    squares = products.diagonal()
    others = ~np.eye(len(products), dtype=bool)
    lengths = np.outer(squares, squares)[others].sum()
    return float(lengths / (products[others] ** 2).sum()) if lengths else None


def table(comparison: Comparison, measured: list[Measured]) -> Iterator[list[str]]:
    """The rows of the CSV: all, kinds, layers, tensors; of each the pairs of fine-tunes."""
    measured = sorted(measured, key=lambda each: _natural(each.tensor.name))
    main = _main_stack(comparison.tensors)
    kinds: dict[str, list[Sums]] = {}
    layers: dict[int, list[Sums]] = {}
    places = {tensor.name: _where(tensor, main) for tensor in comparison.tensors}
    for tensor, sums, _ in measured:
        layer, kind = places[tensor.name]
        kinds.setdefault(kind, []).append(sums)
        if layer is not None:
            layers.setdefault(layer, []).append(sums)
    names = comparison.models[1:]
    yield from _rows(("all", "", "", ""), names, together([each.sums for each in measured]))
    for kind, parts in kinds.items():
        yield from _rows(("kind", "", kind, ""), names, together(parts))
    for layer, parts in sorted(layers.items()):
        yield from _rows(("layer", str(layer), "", ""), names, together(parts))
    for tensor, sums, ranks in measured:
        layer, kind = places[tensor.name]
        at = ("tensor", "" if layer is None else str(layer), kind, tensor.name)
        yield from _rows(at, names, sums, ranks)


def _rows(
    at: tuple[str, ...], names: list[str], sums: Sums, ranks: Sequence[float | None] = ()
) -> Iterator[list[str]]:
    """A row for each pair. at: scope, layer, kind, tensor."""
    norms = np.sqrt(sums.dots.diagonal())
    shown = [_two_digits(rank) for rank in ranks or [None] * len(names)]
    for a, b in itertools.combinations(range(len(names)), 2):
        both = int(sums.changed[a, b])
        length = norms[a] * norms[b]
        yield [
            *at,
            *(names[a], names[b], str(sums.weights)),
            # + 0.0: no -0.000000
            f"{round(sums.dots[a, b] / length, 6) + 0.0:.6f}" if length else "",
            f"{sums.conflicts[a, b] / both:.6g}" if both else "",
            *(f"{count / sums.weights:.6g}" for count in _changes(sums, a, b)),
            *(f"{norm:.9g}" for norm in (norms[a], norms[b], math.sqrt(sums.base))),
            *(shown[a], shown[b]),
        ]


def _changes(sums: Sums, a: int, b: int) -> tuple[int, int, int]:
    """Weights changed by both, by a, by b."""
    return sums.changed[a, b], sums.changed[a, a], sums.changed[b, b]


def _two_digits(rank: float | None) -> str:
    """An effective rank as it is written: it is not known to more."""
    return "" if rank is None else f"{float(f'{rank:.2g}'):g}"


def _main_stack(tensors: Iterable[Compared]) -> str:
    """What the layers with the most weights are called; those of towers are others."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        if tensor.place.layer is not None:
            weights[tensor.place.stack] = weights.get(tensor.place.stack, 0) + tensor.weights
    return max(sorted(weights), key=weights.get, default="")


def _where(tensor: Compared, main: str) -> tuple[int | None, str]:
    """(layer, kind) of a tensor. Of layers that are not the main ones only the kind is told."""
    stack, layer, kind = tensor.place
    if layer is None or stack == main:
        return layer, kind
    return None, f"{stack.removeprefix('model.')}.{kind}"


def _natural(name: str) -> list[Any]:
    """A key by which layer 10 comes after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base", nargs=2, metavar=("NAME", "DIRECTORY"), required=True, help="the base model"
    )
    parser.add_argument(
        "--model",
        nargs=2,
        metavar=("NAME", "DIRECTORY"),
        action="append",
        required=True,
        help="a fine-tune of it, two or more",
    )
    parser.add_argument("--processes", type=int, default=2, help="that read and compute")
    parser.add_argument(
        "--probes",
        type=int,
        default=PROBES,
        help=f"random vectors for the effective rank, 0 for none (default: {PROBES})",
    )
    parser.add_argument(
        "--notes", type=Path, help="JSON to write: {base, weights: of the base, left: [sentence]}"
    )
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    args = parser.parse_args()
    comparison = compare([(name, Path(place)) for name, place in (args.base, *args.model)])
    for note in comparison.notes:
        print(note, flush=True)
    measured = list(_told(comparison, measure(comparison, args.processes, args.probes)))
    with args.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *table(comparison, measured)])
    if args.notes:
        notes = {"base": args.base[0], "weights": comparison.base_weights}
        args.notes.write_text(json.dumps(notes | {"left": comparison.notes}), encoding="utf-8")


def _told(comparison: Comparison, measured: Iterable[Measured]) -> Iterator[Measured]:
    """The same, telling on the way how far it is."""
    done, told, total = 0, 0, sum(tensor.weights for tensor in comparison.tensors)
    for each in measured:
        yield each
        done += each.tensor.weights
        if done * STEPS >= (told + 1) * total:
            told = done * STEPS // total
            print(f"compared {done} of {total} weights", flush=True)


if __name__ == "__main__":
    program(main)

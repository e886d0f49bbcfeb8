"""Run llama.cpp's converter, with its tensors computed ahead by several processes.

convert_hf_to_gguf.py computes a tensor (16-bit floats to 32 bits, and to the wanted type) when its
turn to be written comes, on one thread. Here the next ones are computed meanwhile, and what is
written is hashed meanwhile. What is computed and the order of writing are the converter's own, so
the bytes are the same.
"""

import argparse
import hashlib
import mmap
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lib.errors import UserError, program
from lib.record.measured import remember, stamp

# Bytes of tensors that one process computes, at least one tensor; and of all that are computed or
# wait for their turn. A tensor that is larger is computed alone.
BATCH, AHEAD = 64 << 20, 1 << 30
# Not threads: numpy's steps are too short for Python's lock. On 16 cores the tensors of 3.5 GB took
# one thread 15 s, 4 threads 8 s, 16 threads 13 s, and 8 processes 3.7 s.
MOST = 8


class Batch:
    """The next tensors, which a process of their own computes into memory that is shared with it.

    Raises UserError, where the data is asked for, if the process has failed.
    """

    def __init__(self, tensors: list[Any]):
        """tensors: gguf's lazy tensors."""
        self.nbytes = sum(tensor.nbytes for tensor in tensors)
        self._tensors, self._memory = tensors, mmap.mmap(-1, max(1, self.nbytes))
        self._process = multiprocessing.get_context("fork").Process(target=self._compute)
        self._process.daemon = True
        self._process.start()

    def _compute(self) -> None:
        import numpy
        import torch
        from gguf import LazyNumpyTensor

        torch.set_num_threads(1)  # a forked process has none of its parent's threads
        for tensor, place in zip(self._tensors, self._places(), strict=True):
            array = numpy.ascontiguousarray(LazyNumpyTensor.to_eager(tensor))
            place[:] = array.reshape(-1).view(numpy.uint8)

    def _places(self) -> Iterator[memoryview]:
        """Each tensor's part of the memory."""
        begin = 0
        for tensor in self._tensors:
            yield memoryview(self._memory)[begin : begin + tensor.nbytes]
            begin += tensor.nbytes

    def data(self) -> Iterator[memoryview]:
        """The bytes of each tensor, once they are computed."""
        self._process.join()
        if status := self._process.exitcode:
            why = f"signal {-status}: is there too little memory?" if status < 0 else "see above"
            raise UserError(f"a process that computed tensors has failed ({why})")
        return self._places()


def computed(tensors: Iterable[Any], processes: int) -> Iterator[memoryview]:
    """Yield the bytes of gguf's lazy tensors in their order; the next are computed meanwhile."""
    todo, waiting = deque(tensors), deque[Batch]()
    while todo or waiting:
        while todo and len(waiting) < processes:
            begun = sum(batch.nbytes for batch in waiting)
            if waiting and begun + todo[0].nbytes > AHEAD:
                break
            part = [todo.popleft()]
            while todo and sum(tensor.nbytes for tensor in part) + todo[0].nbytes <= BATCH:
                part.append(todo.popleft())
            waiting.append(Batch(part))
        yield from waiting.popleft().data()


class InTurn:
    """What takes a tensor's place in gguf's writer, which asks for its size and then writes it."""

    def __init__(self, nbytes: int, data: Iterator[memoryview]):
        """data: of all tensors from this one on."""
        self.nbytes, self._data = nbytes, data

    def tofile(self, file: "Hashed") -> None:
        """Write the tensor's bytes."""
        file.write(next(self._data))


class Hashed:
    """A file that is written from its beginning to its end. A thread hashes what is written."""

    def __init__(self, path: Path):
        self.path = path
        self._file, self._sha256 = open(path, "wb"), hashlib.sha256()
        self._thread, self._hashing = ThreadPoolExecutor(1), deque[Future]()
        self.tell, self.flush = self._file.tell, self._file.flush

    def write(self, data: Any) -> None:
        """Write bytes, which must not be changed afterwards."""
        self._hashing.append(self._thread.submit(self._sha256.update, data))
        self._file.write(data)
        if len(self._hashing) > 2:  # the memory of what waits is not free
            self._hashing.popleft().result()

    def close(self) -> None:
        """Close the file, and note its sha256 for the step that runs this program."""
        self._file.close()
        self._thread.shutdown()
        if directory := os.environ.get("STAGE"):
            sha256 = {self.path: self._sha256.hexdigest()}
            remember(Path(directory), sha256, {self.path: stamp(self.path)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--threads", type=int, required=True, help=f"processes that compute tensors, {MOST} at most"
    )
    parser.add_argument("converter", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    args = parser.parse_args()
    if not os.path.isfile(args.converter):
        raise UserError(f"{args.converter}: there is no such file")
    sys.path[0] = os.path.dirname(args.converter)
    import convert_hf_to_gguf  # before gguf: it takes the one that lies beside it

    if sys.platform == "linux":  # elsewhere a process is not to be forked
        compute_ahead(min(args.threads, MOST))
    sys.argv = [args.converter, *args.arguments]
    convert_hf_to_gguf.main()


def compute_ahead(processes: int) -> None:
    """Make gguf's writer compute tensors ahead, and hash what it writes."""
    from gguf import GGUFWriter

    write, open_file = GGUFWriter.write_tensors_to_file, GGUFWriter.open_output_file

    def open_hashed(writer: Any, path: Path | None = None) -> None:
        before = writer.fout
        open_file(writer, path)
        if writer.fout is not before:
            for file in writer.fout:
                file.close()
            writer.fout = [Hashed(Path(file.name)) for file in writer.fout]

    def write_ahead(writer: Any, **more: Any) -> None:
        found = [info for part in writer.tensors for info in part.values()]
        data = computed([info.tensor for info in found], processes)
        for info in found:
            info.tensor = InTurn(info.nbytes, data)
        write(writer, **more)

    GGUFWriter.write_tensors_to_file, GGUFWriter.open_output_file = write_ahead, open_hashed


if __name__ == "__main__":
    program(main)

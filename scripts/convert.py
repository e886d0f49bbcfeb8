"""Run llama.cpp's converter, with its tensors computed ahead on several threads.

convert_hf_to_gguf.py computes a tensor (16-bit floats to 32 bits, and to the wanted type) when its
turn to be written comes, on one thread. Here the next ones are computed meanwhile. What is computed
and the order of writing are the converter's own, so the bytes are the same.
"""

import argparse
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from lib.errors import UserError, program

# Bytes of tensors that may wait, computed, for their turn. One tensor may be larger.
AHEAD = 512 << 20
# More threads only fight for memory: 3.5 GB took 15 s without, 8 s with 4, 13 s with 16 (16 cores).
MOST = 4


class InTurn:
    """What takes a tensor's place in gguf's writer, which asks for its size and then writes it."""

    def __init__(self, nbytes: int, arrays: Iterator[Any]):
        """arrays: all tensors from this one on."""
        self.nbytes, self._arrays = nbytes, arrays

    def tofile(self, file: IO[bytes]) -> None:
        """Write the tensor's bytes."""
        next(self._arrays).tofile(file)


def computed(tensors: Iterable[Any], threads: int) -> Iterator[Any]:
    """Yield gguf's lazy tensors as arrays, in their order; the next ones are computed meanwhile."""
    from gguf import LazyNumpyTensor

    todo, waiting, size = deque(tensors), deque(), 0
    with ThreadPoolExecutor(threads) as pool:
        while todo or waiting:
            while todo and (not waiting or size + todo[0].nbytes <= AHEAD):
                tensor = todo.popleft()
                size += tensor.nbytes
                result = pool.submit(LazyNumpyTensor.to_eager, tensor)
                waiting.append((tensor.nbytes, result))
            nbytes, result = waiting.popleft()
            yield result.result()
            size -= nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True, help="threads that compute tensors")
    parser.add_argument("converter", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    args = parser.parse_args()
    if not os.path.isfile(args.converter):
        raise UserError(f"{args.converter}: there is no such file")
    sys.path[0] = os.path.dirname(args.converter)
    import convert_hf_to_gguf  # before gguf: it takes the one that lies beside it
    import gguf

    write = gguf.GGUFWriter.write_tensors_to_file

    def write_ahead(writer: Any, **more: Any) -> None:
        found = [info for part in writer.tensors for info in part.values()]
        arrays = computed([info.tensor for info in found], min(args.threads, MOST))
        for info in found:
            info.tensor = InTurn(info.nbytes, arrays)
        write(writer, **more)

    gguf.GGUFWriter.write_tensors_to_file = write_ahead
    sys.argv = [args.converter, *args.arguments]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    program(main)

"""Base logits: the file that llama-perplexity writes with --kl-divergence-base.

The layout is that of tools/perplexity/perplexity.cpp in llama.cpp b10605, little-endian:

- the header: `_logits_`, the context (tokens), the vocabulary (tokens), the number of chunks;
- the tokens of all chunks, 4 bytes each;
- a row for each scored position of each chunk: a scale and an offset (two floats), then 16 bits
  for each token of the vocabulary, and 16 bits more if that number is odd. The log probability of
  a token is its 16 bits times the scale plus the offset. It is never less than 16 below the
  greatest, and off by 0.00012 at most.

The second half of a chunk is scored, without its last position (lib/formats/divergence.scored).
"""

import struct
from collections.abc import Iterator
from typing import IO, Any

MAGIC = b"_logits_"
HEADER = struct.Struct("<8sIii")  # magic, context, vocabulary, chunks
SCALES = 4  # of 16 bits, at the beginning of a row: two floats


def base_logits_bytes(chunks: int, context: int, vocabulary: int) -> int:
    """Bytes of the base logits of `chunks` chunks of `context` tokens.

    vocabulary: how many tokens the model knows.
    """
    return HEADER.size + chunks * (4 * context + _scored(context) * 2 * _width(vocabulary))


class Logits:
    """Base logits, read from a stream that need not be a file: they come in the order of the text.

    tokens: int32 (chunks, context). vocabulary: how many tokens the model knows. Every method
    raises EOFError if the stream ends too early; so does this, which also raises ValueError if it
    holds something else.
    """

    def __init__(self, stream: IO[bytes]):
        import numpy

        self._stream = stream
        magic, context, self.vocabulary, chunks = HEADER.unpack(self._read(HEADER.size))
        if magic != MAGIC:
            raise ValueError("not base logits")
        tokens = numpy.frombuffer(self._read(4 * chunks * context), numpy.int32)
        self.tokens = tokens.reshape(chunks, context)

    def rows(self) -> Iterator[Any]:
        """Yield the row of each scored position as it is stored: uint16 (width,)."""
        import numpy

        size = 2 * _width(self.vocabulary)
        for _ in range(len(self.tokens) * _scored(self.tokens.shape[1])):
            yield numpy.frombuffer(self._read(size), numpy.uint16)

    def log_p(self, row: Any, tokens: Any = slice(None)) -> Any:
        """The log probabilities of `tokens` (all) in one of the rows, in nats: float32."""
        import numpy

        scale, offset = row[:SCALES].view(numpy.float32)
        return self.ranks(row)[tokens] * scale + offset

    def ranks(self, row: Any) -> Any:
        """Numbers in the order of the log probabilities in a row: uint16 (vocabulary,)."""
        return row[SCALES : SCALES + self.vocabulary]

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError("the logits end too early")
        return data


def _scored(context: int) -> int:
    return context - 1 - context // 2


def _width(vocabulary: int) -> int:
    return SCALES + 2 * ((vocabulary + 1) // 2)

"""Base logits: what llama-perplexity writes (--kl-divergence-base) and measures others against.

As tools/perplexity/perplexity.cpp of llama.cpp b10605 has it, little-endian:

- the header: `_logits_`, the context in tokens, the vocabulary, the number of chunks;
- the tokens of all chunks, 4 bytes each;
- for each position of a chunk that is scored, a row: scale and offset, two floats; the logits of
  the whole vocabulary in 16 bits each, and where their number is odd, 16 bits more.

Scored is a chunk's second half without its last position (lib/formats/divergence.scored).
"""

import struct

MAGIC = b"_logits_"
HEADER = struct.Struct("<8sIii")  # magic, context, vocabulary, chunks


def base_logits_bytes(chunks: int, context: int, vocabulary: int) -> int:
    """Bytes of the base logits of so many chunks of `context` tokens."""
    scored = context - 1 - context // 2
    row = 2 * 4 + 2 * 2 * ((vocabulary + 1) // 2)
    return HEADER.size + chunks * (4 * context + scored * row)

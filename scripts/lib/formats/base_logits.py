"""The size of base logits, the file that llama-perplexity writes with --kl-divergence-base.

llama-perplexity compares quants with it. The layout is that of tools/perplexity/perplexity.cpp in
llama.cpp b10605, little-endian:

- the header: `_logits_`, the context (tokens), the vocabulary (tokens), the number of chunks;
- the tokens of all chunks, 4 bytes each;
- a row for each scored position of each chunk: a scale and an offset (two floats), then 16 bits
  for each token of the vocabulary, and 16 bits more if that number is odd.

The second half of a chunk is scored, without its last position (lib/formats/divergence.scored).
"""

import struct

MAGIC = b"_logits_"
HEADER = struct.Struct("<8sIii")  # magic, context, vocabulary, chunks


def base_logits_bytes(chunks: int, context: int, vocabulary: int) -> int:
    """Bytes of the base logits of `chunks` chunks of `context` tokens.

    vocabulary: how many tokens the model knows.
    """
    scored = context - 1 - context // 2
    row = 2 * 4 + 2 * 2 * ((vocabulary + 1) // 2)
    return HEADER.size + chunks * (4 * context + scored * row)

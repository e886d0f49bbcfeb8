"""Base logits: what llama-perplexity --kl-divergence-base writes."""


def base_logits_bytes(chunks: int, context: int, vocabulary: int) -> int:
    """What llama-perplexity --kl-divergence-base writes: of the second half of each chunk all logits in 16 bits."""
    scored = context - 1 - context // 2
    return chunks * (scored * (2 * ((vocabulary + 1) // 2) + 4) * 2 + 4 * context) + 20

"""How many measurements share a GPU. The planner asks too, so nothing large is imported."""

COPIES, SMALL = 4, 4 * 10**9  # of a model of fewer bytes: they mostly start and load


def copies(size: int) -> int:
    """Measurements that share a GPU. size: bytes of the model."""
    return COPIES if size < SMALL else 1

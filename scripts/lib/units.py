"""Sizes as people read them."""


def human(size: float) -> str:
    """Bytes, in powers of 1000: 1234567 is 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"

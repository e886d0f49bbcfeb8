"""Sizes and numbers as people read them."""


def human(size: float) -> str:
    """Bytes, in powers of 1000: 1234567 is 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def count(number: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def is_are(number: int) -> str:
    """The verb for a number of things."""
    return "is" if number == 1 else "are"

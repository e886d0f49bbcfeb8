"""Sizes and numbers in words, for messages and reports."""


def human(size: float) -> str:
    """The text for `size` bytes, in powers of 1000: 1234567 gives "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def duration(seconds: float) -> str:
    """Seconds in words: "62 min", "1 h 45 min"."""
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int, noun: str) -> str:
    """A number and its noun, with a plural s unless the number is 1: "1 file", "2 files"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def is_are(number: int) -> str:
    """The verb that goes with `number` things: "is" for 1, else "are"."""
    return "is" if number == 1 else "are"


def printable(text: str) -> str:
    """Text from a stranger for a terminal: what is no plain character, as an escape sequence is
    none, is spelt in ASCII."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))

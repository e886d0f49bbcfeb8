"""Reads bits per weight."""

from typing import Any

from lib.keys.values import show, to_list, to_number


def to_bits(value: Any, low: int) -> list[float]:
    """A list of bits per weight, from a number or a list of numbers.

    Raises ValueError for an empty list, a number outside `low` to 8, and one that is there twice.
    """
    bits = [to_number(entry, low, 8, whole=False) for entry in to_list(value)]
    if not bits:
        raise ValueError("names no bits per weight, such as [4.0, 5.0]")
    for index, number in enumerate(bits):
        if number in bits[:index]:
            raise ValueError(f"{number} is there twice")
    return bits


def to_head_bits(value: Any, known: tuple[int, ...]) -> int:
    """Bits per weight of the output layer. Raises ValueError for a value that is not known."""
    try:
        number = to_number(value, known[0], known[-1], whole=True)
    except ValueError:
        number = None
    if number not in known:
        raise ValueError(f"{show(value)} is not one of {', '.join(map(str, known))}")
    return number

"""Write sizes and measured figures: one unit in a column, as many decimals as errors allow."""

import math

from lib.report.judge import Figure, Form


def size_unit(forms: list[Form]) -> tuple[float, str]:
    """The unit for all sizes of a model: its bytes, and its name (GB, MB or kB, powers of 1000)."""
    largest = max((form.bytes for form in forms), default=0)
    return (1e9, "GB") if largest >= 1e9 else (1e6, "MB") if largest >= 1e6 else (1e3, "kB")


def size_text(size: float, forms: list[Form]) -> str:
    """A size in bytes, written in the unit of the model's forms: 4.92 GB."""
    unit, name = size_unit(forms)
    digits = 1 if max(form.bytes for form in forms) >= 100 * unit else 2
    return f"{size / unit:.{digits}f} {name}"


def size_range(forms: list[Form]) -> str:
    """The sizes of forms that are in the order of their sizes: 2.02 GB to 16.07 GB."""
    ends = [size_text(form.bytes, forms) for form in forms[:1] + forms[-1:]]
    return " to ".join(dict.fromkeys(ends))


def scaled(figure: Figure, factor: float) -> Figure:
    """A figure and its error times `factor`."""
    return Figure(
        None if figure.value is None else figure.value * factor,
        None if figure.error is None else figure.error * factor,
    )


def places(figures: list[Figure], most: int) -> list[int]:
    """The number of decimals of each figure of a column, at most `most`.

    The figures get the same number as far as their errors allow it. A figure is written to the
    first or the second digit of its error. Without an error it is written to its own third digit;
    if its error is exactly 0, further digits are allowed.
    """
    bounds = [_bounds(figure, most) for figure in figures]
    allowed = [
        bound for figure, bound in zip(figures, bounds, strict=True) if figure.value is not None
    ]
    shared = max(range(most + 1), key=lambda n: (_fit(n, allowed), n))
    return [min(max(shared, low), high) for low, high in bounds]


def _fit(digits: int, bounds: list[tuple[int, int]]) -> tuple[int, int]:
    """How well a number of decimals fits: higher is better. bounds: (fewest, most) of each figure.

    Returns how many figures allow it, and minus the sum of the others' distances from it.
    """
    off = [max(low - digits, digits - high, 0) for low, high in bounds]
    return off.count(0), -sum(off)


def _bounds(figure: Figure, most: int) -> tuple[int, int]:
    """The fewest and the most decimals that a figure may be written with."""
    if figure.error:
        low = -math.floor(math.log10(figure.error))
        high = low + 1
    else:
        low = 2 - math.floor(math.log10(abs(figure.value))) if figure.value else 0
        high = low if figure.value and figure.error is None else most
    return min(most, max(0, low)), min(most, max(0, high))


def decimal(value: float, digits: int) -> str:
    """A number with `digits` decimals; one that rounds to zero has no minus sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"

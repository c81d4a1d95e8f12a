"""Cuts a window of steps into columns: ranges of one width, a power of two, and aligned to it.

Aligned columns are those that somebody else has asked for, too, so that sums over them can be kept.
It knows numbers of steps only.
"""

from collections.abc import Iterator

MOST_COLUMNS = 2000

Span = tuple[int, int]
"""First and last step, both included."""


def column_width(first: int, last: int, most: int) -> int:
    """The smallest power of two of which at most `most` columns hold the window."""
    width = 1
    while (last - 1) // width - (first - 1) // width >= most:
        width *= 2
    return width


def columns(first: int, last: int, most: int) -> list[Span]:
    """The columns of a window, at most `most`, cut at its ends; [] for an empty window."""
    width = column_width(first, last, max(1, most))
    return list(aligned(first, last, width))


def aligned(first: int, last: int, width: int) -> Iterator[Span]:
    """The parts of a window between multiples of `width`: 1..width, width + 1..2 * width, ..."""
    while first <= last:
        end = min(last, ((first - 1) // width + 1) * width)
        yield first, end
        first = end + 1

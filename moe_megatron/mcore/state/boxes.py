"""Cuts a range of a flattened tensor into boxes: parts that are a range along every axis.

A rank of the distributed optimizer owns a range of a flattened parameter; a checkpoint stores boxes
of tensors. A range of a tensor of N axes takes at most 2N - 1 boxes. This module knows shapes and
positions alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a tensor, and where in memory its first element is."""

    corner: Numbers
    sizes: Numbers
    position: int


def boxes_of_range(
    shape: Sequence[int],
    strides: Sequence[int],
    position: int,
    owned: range,
    largest: int,
) -> Iterator[Box]:
    """The elements of a tensor whose positions in memory are in a range, as boxes.

    Args:
        shape: Shape of the tensor.
        strides: Positions from one index of each axis to the next. What an index selects must end
            before the next begins, as in contiguous tensors and in parts of such.
        position: Position of the first element.
        owned: The range of positions.
        largest: Elements above which a box is cut into several.
    """
    if not shape:
        if position in owned:
            yield Box((), (), position)
        return
    length, *rest = shape
    step, *inner = strides
    row_size = prod(rest)
    row_span = 1 + sum((n - 1) * stride for n, stride in zip(rest, inner, strict=True))
    first, last = owned.start - position, owned.stop - position
    touched = range(
        _within(length, (first - row_span) // step + 1), _within(length, -(-last // step))
    )
    whole = range(
        _within(length, -(-first // step)), _within(length, (last - row_span) // step + 1)
    )
    at_once = largest // max(1, row_size)
    if not whole or not at_once:
        whole = range(touched.start, touched.start)
    for row in (*range(touched.start, whole.start), *range(whole.stop, touched.stop)):
        for box in boxes_of_range(rest, inner, position + row * step, owned, largest):
            yield Box((row, *box.corner), (1, *box.sizes), box.position)
    for row in range(whole.start, whole.stop, max(1, at_once)):
        rows = min(at_once, whole.stop - row)
        yield Box((row, *(0 for _ in rest)), (rows, *rest), position + row * step)


def _within(length: int, row: int) -> int:
    return min(max(row, 0), length)

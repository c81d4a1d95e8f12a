"""Rows of text as lines whose columns stand below each other, for terminals."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, flush_left: int = 1) -> list[str]:
    """A line for each row, two spaces between columns.

    Args:
        rows: All of one length, heads among them.
        flush_left: How many of the first columns are flush left; all others are flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if column < flush_left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]

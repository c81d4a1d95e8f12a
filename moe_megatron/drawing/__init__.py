"""Draws numbers with matplotlib: one style, one way to save, and figures of arrays and labels.

`page` gives an empty figure in the style, and `Picture` shows and saves it. A figure is a function
from arrays to a `Picture`, in a file of its own; it does not know where the numbers come from.
matplotlib is imported when something is drawn.
"""

from moe_megatron.drawing.picture import Picture, finished
from moe_megatron.drawing.style import COLOURS, ONE_COLUMN, TWO_COLUMNS, page, plain

__all__ = ["COLOURS", "ONE_COLUMN", "TWO_COLUMNS", "Picture", "finished", "page", "plain"]

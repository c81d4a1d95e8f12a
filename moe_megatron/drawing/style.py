"""How every figure looks: sizes for a paper's columns, fonts that are embedded, colours for all.

Nothing here changes the settings of matplotlib outside of the figures that are made. It does not
know what is drawn.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moe_megatron.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN, TWO_COLUMNS = 3.35, 7.0
"""Widths of figures in inches, as journals and conferences have them (85 and 178 mm)."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
"""Okabe and Ito's, which differ for all kinds of colour vision, and in grey."""
AMOUNTS, DIFFERENCES = "viridis", "RdBu_r"
"""Names of colour maps: from little to much, and around a middle."""
QUIET, ABSENT = "0.45", "0.75"
"""Greys: of what is not in the foreground, and of what has no value."""

DOTS_PER_INCH = 200

SMALL = 6.5
"""Points of text that has little room, such as the labels of many rows."""

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "image.cmap": AMOUNTS,
    "image.interpolation": "nearest",
    "image.aspect": "auto",
    "savefig.dpi": DOTS_PER_INCH,
    "pdf.fonttype": 42,  # TrueType, which printers and reviewers' tools want
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "moe_megatron",  # else names of clips are drawn by chance
}


def width_of(columns: int) -> float:
    """The width of a figure that spans one or two columns of a page, in inches.

    Raises:
        ConfigError: It is another number.
    """
    widths = {1: ONE_COLUMN, 2: TWO_COLUMNS}
    if columns not in widths:
        raise ConfigError(f"a figure spans columns=1 or columns=2 of a page, not {columns!r}.")
    return widths[columns]


@contextmanager
def styled() -> Iterator[None]:
    """The style inside the block; figures must be made, and saved, inside of one."""
    import matplotlib
    from cycler import cycler

    style: Any = {**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
    with matplotlib.rc_context(style):
        yield


@contextmanager
def page(width: float, height: float) -> "Iterator[Figure]":
    """An empty figure to draw on in the block; afterwards give it to `Picture`.

        with page(ONE_COLUMN, 2.0) as figure:
            figure.subplots().plot([1, 2, 3])
        return Picture(figure)

    Args:
        width: In inches; `ONE_COLUMN` and `TWO_COLUMNS` fit papers.
        height: In inches.
    """
    from matplotlib.figure import Figure

    with styled():
        yield Figure(figsize=(width, height), layout="constrained")


def legend_beside(panel: "Axes", columns: int, **more: Any) -> None:
    """The legend of a panel that is alone: right of it on two columns, below the figure on one.

    Args:
        panel: What it explains.
        columns: Of the page that the figure spans.
        more: As matplotlib's `legend` takes it, such as `handles`.
    """
    if columns == 2:
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **more)
        return
    named = more.pop("handles", None) or panel.get_legend_handles_labels()[0]
    panel.figure.legend(handles=named, loc="outside lower left", **{**more, "ncols": 2})


def plain(text: str) -> str:
    """Text as it is: matplotlib would read a dollar sign as the start of a formula."""
    return text.replace("$", r"\$")

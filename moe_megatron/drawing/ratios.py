"""How ratios look: a logarithmic scale around 1, where they are even, with two octaves each way."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

MOST_RATIO = 4.0
"""Where the colours end, and its inverse."""


def ratio_norm() -> "LogNorm":
    """From ratios to places in a colour map of `DIFFERENCES`."""
    from matplotlib.colors import LogNorm

    return LogNorm(vmin=1 / MOST_RATIO, vmax=MOST_RATIO)


def ratio_bar(figure: "Figure", image: Any, panel: "Axes", label: str, **place: Any) -> None:
    """The colour bar of an image that `ratio_norm` scales.

    Args:
        figure: Of the panel.
        image: What `imshow` returned.
        panel: Beside which it stands.
        label: What it says.
        place: As matplotlib's `colorbar` takes it, such as `pad`.
    """
    bar = figure.colorbar(image, ax=panel, extend="both", label=label, **place)
    bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
    bar.ax.minorticks_off()

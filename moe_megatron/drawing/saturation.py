"""Draws how far routers decide as they will at the end. It knows numbers, not checkpoints."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.style import AMOUNTS, QUIET, legend_beside, page, width_of

Float64Array = npt.NDArray[np.float64]


class _Agreement(Protocol):
    """Of one checkpoint with the last; see `analytics.saturation`."""

    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def share(self) -> Float64Array: ...
    @property
    def interval(self) -> Float64Array: ...
    @property
    def chance(self) -> Float64Array: ...
    @property
    def by_token(self) -> Float64Array: ...


def plot_saturation(
    steps: Sequence[int], found: Sequence[_Agreement], last: int, columns: int = 2
) -> Picture:
    """A line a layer over the steps, with its interval; grey are the choices for other tokens.

    Args:
        steps: Of the checkpoints, rising.
        found: Their agreement with the last.
        last: Its step.
        columns: Of the page that the figure spans, 1 or 2.
    """
    import matplotlib

    layers = found[0].layers
    colours = matplotlib.colormaps[AMOUNTS](np.linspace(0.0, 0.9, len(layers)))
    with page(width_of(columns), 2.8 if columns == 2 else 3.4) as figure:
        panel = figure.subplots()
        for row, (layer, colour) in enumerate(zip(layers, colours, strict=True)):
            low, high = (np.array([it.interval[end][row] for it in found]) for end in (0, 1))
            shares = [it.share[row] for it in found]
            panel.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            panel.plot(steps, shares, "o-", color=colour, label=f"layer {layer}")
        for name, style in (("by_token", "--"), ("chance", ":")):
            values = [float(np.nanmean(getattr(it, name))) for it in found]
            which = "the same id" if name == "by_token" else "any id"
            label = f"another token of {which},\nmean of the layers"
            panel.plot(steps, values, style, color=QUIET, label=label)
        panel.set_ylim(0, 1)
        panel.set_xlabel("step")
        panel.set_ylabel(f"share of the experts of step {last}")
        panel.set_title(
            f"At step {steps[0]} routers chose {found[0].share.mean():.0%} of the experts of step "
            f"{last}, at step {steps[-1]} {found[-1].share.mean():.0%} (band: 95 % over documents)",
            wrap=True,
        )
        legend_beside(panel, columns, ncols=-(-len(layers) // 12))
    return Picture(figure)

"""Draws which experts share tokens: within a layer, and from one layer to the next.

It knows counts, not models.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.ratios import MOST_RATIO, ratio_bar, ratio_norm
from moe_megatron.drawing.style import (
    ABSENT,
    AMOUNTS,
    DIFFERENCES,
    SMALL,
    page,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_MAX_TICKS = 8
_BAND = 0.35
"""Width of a layer in the picture of a flow, in parts of the distance of two layers."""
_GAP = 0.01
"""Between experts of one layer, in parts of the height."""
_LABELLED = 24
"""Layers with more experts have no numbers beside them."""


def plot_coactivation(lift: Float64Array, layer: int, columns: int = 1) -> Picture:
    """Pairs of experts: how often they share a token, over what their loads make of it.

    Args:
        lift: [E, E]; NaN for an expert with itself, and where there is too little to tell.
        layer: Number of the layer.
        columns: Of the page that the figure spans, 1 or 2.
    """
    width = width_of(columns)
    with page(width, 2.9 if columns == 1 else 5.2) as figure:
        panel = figure.subplots()
        panel.set_facecolor(ABSENT)
        shown = np.where(lift > 0, lift, np.where(lift == 0, 1 / (2 * MOST_RATIO), np.nan))
        image = panel.imshow(shown, cmap=DIFFERENCES, norm=ratio_norm(), aspect="equal")
        ticks = range(0, len(lift), -(-len(lift) // _MAX_TICKS))
        panel.set_xticks(list(ticks))
        panel.set_yticks(list(ticks))
        panel.set_xlabel("expert")
        panel.set_ylabel("expert")
        ratio_bar(figure, image, panel, "shared tokens / by loads")
        above, below = ((shown > 1).sum() // 2, (shown < 1).sum() // 2)
        panel.set_title(
            f"Layer {layer}: {above} pairs of experts share more tokens than their loads explain, "
            f"{below} fewer",
            wrap=columns == 1,
        )
    return Picture(figure)


def plot_flow(
    flows: Sequence[Int64Array],
    lifts: Sequence[Float64Array],
    layers: Sequence[int],
    columns: int = 2,
) -> Picture:
    """Bands of tokens from the experts of a layer to those of the next.

    The height of an expert, and the width of a band, is its part of the assignments. Bands that are
    wider than the loads of their experts make them have the colour of their lift, the others
    are grey.

    Args:
        flows: [E, E] for each pair of neighbouring layers: tokens that chose both experts.
        lifts: [E, E] of each: flow over what the loads make of it, 1 where that is not sure.
        layers: Numbers of the layers, one more than flows.
        columns: Of the page that the figure spans, 1 or 2.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    norm, colours = Normalize(1.0, MOST_RATIO), matplotlib.colormaps[AMOUNTS].reversed()
    with page(width_of(columns), 3.6 if columns == 2 else 2.8) as figure:
        panel = figure.subplots()
        for place, (flow, lift) in enumerate(zip(flows, lifts, strict=True)):
            share = flow / flow.sum()
            starts, ends = _places(share.sum(axis=1)), _places(share.sum(axis=0))
            _draw_bands(panel, place, share, (starts, ends), np.where(lift > 1, lift, 0.0),
                        lambda value: colours(norm(value)))  # fmt: skip
            _draw_experts(panel, place, starts, share.sum(axis=1))
        _draw_experts(panel, len(flows), ends, share.sum(axis=0))
        word = "layer " if columns == 2 else ""
        panel.set_xticks(range(len(layers)), [f"{word}{it}" for it in layers])
        panel.set_xlabel("" if word else "layer")
        panel.set_yticks([])
        panel.spines[["left", "bottom"]].set_visible(False)
        panel.tick_params(length=0)
        panel.invert_yaxis()
        surplus = np.mean([_surplus(*it) for it in zip(flows, lifts, strict=True)])
        panel.set_title(
            f"{surplus:.0%} of the assignments go from expert to expert beyond what loads explain",
            wrap=True,
        )
        figure.colorbar(
            ScalarMappable(norm, colours), ax=panel, label="flow / by the loads", extend="max",
            shrink=0.7, pad=0.01,
        )  # fmt: skip
    return Picture(figure)


def _surplus(flow: Int64Array, lift: Float64Array) -> float:
    """Part of a flow that is above what the loads explain."""
    expected = np.divide(flow, lift, out=np.zeros(flow.shape), where=lift > 0)
    return float((flow - expected)[lift > 1].sum() / flow.sum())


def _places(heights: Float64Array) -> Float64Array:
    """Where each expert begins, with gaps."""
    return np.concatenate([[0.0], np.cumsum(heights + _GAP)[:-1]])


def _draw_bands(
    panel: "Axes",
    place: int,
    share: Float64Array,
    at: tuple[Float64Array, Float64Array],
    lift: Float64Array,
    colour: Callable[[float], Any],
) -> None:
    starts, ends = (it.copy() for it in at)
    x = np.linspace(0.0, 1.0, 24)
    bend = x * x * (3 - 2 * x)
    order = [(i, j) for i in range(len(share)) for j in range(len(share))]
    bands = []
    for i, j in order:
        width = share[i, j]
        bands.append((lift[i, j], starts[i], ends[j], width))
        starts[i] += width
        ends[j] += width
    for value, start, end, width in sorted(bands, key=lambda it: it[0]):
        top = start + (end - start) * bend
        panel.fill_between(
            place + _BAND / 4 + x * (1 - _BAND / 2), top, top + width, linewidth=0,
            color=colour(value) if value else ABSENT, alpha=0.75 if value else 0.25,
        )  # fmt: skip


def _draw_experts(panel: "Axes", place: int, starts: Float64Array, heights: Float64Array) -> None:
    panel.bar(
        np.full(len(starts), place), heights, _BAND / 2, bottom=starts, color="0.25", linewidth=0
    )
    if len(starts) <= _LABELLED:
        for expert, (start, height) in enumerate(zip(starts, heights, strict=True)):
            panel.text(place, start + height / 2, str(expert), ha="center", va="center",
                       color="white", fontsize=SMALL)  # fmt: skip

"""Draws the routers' scores of all experts for each token of a text.

It knows arrays and labels, not models.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.style import SMALL, page, plain, width_of

_MAX_PANELS = 12
_MAX_LABELS = {1: 32, 2: 80}
_INCHES_PER_EXPERT = 0.1
_PANEL_HEIGHTS = (0.8, 3.0)


def plot_affinity(
    scores: npt.NDArray[np.float32],
    indices: npt.NDArray[np.int64],
    layers: Sequence[int],
    labels: Sequence[str],
    columns: int = 2,
) -> Picture:
    """One panel per layer: tokens across, experts down, the router's score as colour.

    Dots mark the chosen experts. Of more than 12 layers, 12 evenly spaced ones are drawn.

    Args:
        scores: [L, tokens, E], the router's distribution.
        indices: [L, tokens, k], chosen experts; -1 is none.
        layers: Numbers of the L layers.
        labels: Text of each token.
        columns: Of the page that the figure spans, 1 or 2.
    """
    num_tokens, num_experts = scores.shape[1:]
    drawn = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), _MAX_PANELS)).round())
    height = float(np.clip(_INCHES_PER_EXPERT * num_experts, *_PANEL_HEIGHTS))
    brightest = float(scores.max())
    with page(width_of(columns), 1.0 + height * len(drawn)) as figure:
        panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
        for panel, row in zip(panels, drawn.astype(int).tolist(), strict=True):
            image = panel.imshow(scores[row].T, vmin=0, vmax=brightest)
            tokens, chosen = np.broadcast_arrays(np.arange(num_tokens)[:, None], indices[row])
            at = chosen >= 0
            panel.plot(tokens[at], chosen[at], ".", color="white", markeredgecolor="black",
                       markeredgewidth=0.3, markersize=3.5)  # fmt: skip
            panel.set_ylabel(f"layer {layers[row]}\nexpert")
            panel.yaxis.get_major_locator().set_params(integer=True)
        shown = range(0, num_tokens, math.ceil(num_tokens / _MAX_LABELS[columns]))
        panels[-1].set_xticks(
            list(shown), [plain(labels[i]) for i in shown], rotation=90, fontsize=SMALL
        )
        figure.colorbar(image, ax=list(panels), label="router score", shrink=0.6, pad=0.01)
        panels[0].set_title(
            "Router scores of each token; dots are the experts that it chose", wrap=True
        )
    return Picture(figure)

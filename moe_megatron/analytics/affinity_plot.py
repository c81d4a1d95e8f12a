"""Plots the routers' scores of all experts for each token of a text, as a PNG file.

It needs neither a display nor pyplot's global state. It knows arrays and labels, not models.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_MAX_PANELS = 12
_MAX_LABELS = 80
_INCHES_PER_TOKEN, _INCHES_PER_EXPERT = 0.22, 0.16
_WIDTHS, _PANEL_HEIGHTS = (5.0, 24.0), (1.2, 5.0)


def plot_affinity(
    scores: npt.NDArray[np.float32],
    indices: npt.NDArray[np.int64],
    layers: Sequence[int],
    labels: Sequence[str],
    save_to: Path,
) -> None:
    """Draws one panel per layer: tokens across, experts down, the router's score as colour.

    Dots mark the chosen experts. Of more than 12 layers, 12 evenly spaced ones are drawn.

    Args:
        scores: [L, tokens, E], the router's distribution.
        indices: [L, tokens, k], chosen experts.
        layers: numbers of the L layers.
        labels: text of each token.
        save_to: file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_tokens, num_experts = scores.shape[1:]
    drawn = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), _MAX_PANELS)).round())
    width = float(np.clip(2 + _INCHES_PER_TOKEN * num_tokens, *_WIDTHS))
    height = float(np.clip(0.6 + _INCHES_PER_EXPERT * num_experts, *_PANEL_HEIGHTS))
    figure = Figure(figsize=(width, 1.0 + height * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    images, brightest = [], float(scores.max())
    for panel, row in zip(panels, drawn.astype(int).tolist(), strict=True):
        picture = scores[row].T
        images.append(
            panel.imshow(picture, aspect="auto", interpolation="nearest", vmin=0, vmax=brightest)
        )
        tokens, chosen = np.broadcast_arrays(np.arange(num_tokens)[:, None], indices[row])
        panel.plot(tokens.ravel(), chosen.ravel(), ".", color="white", markersize=3)
        panel.set_ylabel(f"layer {layers[row]}\nexpert")
        panel.yaxis.get_major_locator().set_params(integer=True)
    stride = math.ceil(num_tokens / _MAX_LABELS)
    shown = range(0, num_tokens, stride)
    # Matplotlib would read an unescaped dollar sign as the start of a formula.
    texts = [labels[i].replace("$", r"\$") for i in shown]
    panels[-1].set_xticks(list(shown), texts, rotation=90, fontsize=7)
    figure.colorbar(images[0], ax=list(panels), label="router score", shrink=0.6)
    figure.suptitle("Affinity of tokens to experts; dots mark the chosen ones")
    figure.savefig(save_to, format="png", dpi=110)

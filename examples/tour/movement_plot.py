"""Draws how far experts moved, and what they gained or lost of the tokens."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_megatron.viz.picture import Picture


def plot_experts(
    moved: npt.NDArray[np.floating],
    gained: npt.NDArray[np.floating],
    layers: Sequence[int],
    save_to: Path,
) -> Path:
    """Two panels, experts across and layers down.

    Args:
        moved: [layers, experts], |W' - W| / |W|.
        gained: [layers, experts], change of an expert's share of the tokens.
        layers: Numbers of the layers.
        save_to: File to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.5, 1.2 + 0.22 * len(layers)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    most = float(np.abs(gained).max()) or 1.0
    drawn = (
        (left, moved, {"cmap": "viridis", "vmin": 0}, 1, "change of the expert, |sBA| / |W|"),
        (
            right,
            gained,
            {"cmap": "RdBu_r", "vmin": -most, "vmax": most},
            0,
            "share of tokens gained",
        ),
    )
    for panel, values, colours, digits, title in drawn:
        image = panel.imshow(values, aspect="auto", interpolation="nearest", **colours)
        panel.set_xlabel("expert")
        panel.set_xticks(range(values.shape[1]))
        figure.colorbar(image, ax=panel, label=title, format=PercentFormatter(1.0, decimals=digits))
    left.set_yticks(range(len(layers)), [str(it) for it in layers], fontsize=7)
    left.set_ylabel("layer")
    return Picture(figure).save(save_to)

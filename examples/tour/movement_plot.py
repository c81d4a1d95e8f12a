"""Draws how far experts moved, and what they gained or lost of the tokens."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing import TWO_COLUMNS, Picture, page
from moe_megatron.drawing.style import AMOUNTS, DIFFERENCES, SMALL


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
    from matplotlib.ticker import PercentFormatter

    most = float(np.abs(gained).max()) or 1.0
    drawn = (
        (moved, {"cmap": AMOUNTS, "vmin": 0}, 1, "change of the expert, |sBA| / |W|"),
        (gained, {"cmap": DIFFERENCES, "vmin": -most, "vmax": most}, 0, "share of tokens gained"),
    )
    with page(TWO_COLUMNS, 1.2 + 0.22 * len(layers)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for panel, (values, colours, digits, title) in zip(panels, drawn, strict=True):
            image = panel.imshow(values, **colours)
            panel.set_xlabel("expert")
            panel.set_xticks(range(values.shape[1]))
            percent = PercentFormatter(1.0, decimals=digits)
            figure.colorbar(image, ax=panel, label=title, format=percent)
        panels[0].set_yticks(range(len(layers)), [str(it) for it in layers], fontsize=SMALL)
        panels[0].set_ylabel("layer")
    return Picture(figure).save(save_to)

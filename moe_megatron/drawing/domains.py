"""Draws which domain gives each expert its work. It knows shares and names, not models."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.style import ABSENT, DIFFERENCES, SMALL, TWO_COLUMNS, page, plain

_INCHES_PER_ROW = 0.17
_HEIGHTS = (1.8, 9.0)
_MAX_TICKS = 16


def plot_shares(
    shares: npt.NDArray[np.float64], layers: Sequence[int], domains: Sequence[str]
) -> Picture:
    """One panel per domain: experts across, layers down, the domain's share as colour.

    White is the share that all domains have where experts ignore them, 1 / D. An expert without
    load is left grey.

    Args:
        shares: [L, D, E], each domain's share of an expert's load; NaN for one without load.
        layers: Numbers of the L layers.
        domains: Names of the D domains.
    """
    from matplotlib.colors import TwoSlopeNorm

    _, num_domains, num_experts = shares.shape
    height = float(np.clip(0.9 + _INCHES_PER_ROW * len(layers), *_HEIGHTS))
    scale = TwoSlopeNorm(vcenter=1 / num_domains, vmin=0.0, vmax=1.0)  # two domains or more
    with page(TWO_COLUMNS, height) as figure:
        panels = figure.subplots(1, num_domains, sharey=True, squeeze=False)[0]
        ticks = range(0, num_experts, -(-num_experts * num_domains // _MAX_TICKS))
        for number, panel in enumerate(panels):
            panel.set_facecolor(ABSENT)
            image = panel.imshow(shares[:, number], norm=scale, cmap=DIFFERENCES)
            panel.set_title(plain(domains[number]))
            panel.set_xticks(list(ticks), [str(it) for it in ticks])
            panel.set_xlabel("expert")
        panels[0].set_yticks(range(len(layers)), [str(it) for it in layers], fontsize=SMALL)
        panels[0].set_ylabel("layer")
        figure.colorbar(image, ax=list(panels), label="share of the expert's work", pad=0.01)
    return Picture(figure)

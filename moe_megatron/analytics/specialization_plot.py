"""Plots which domain gives each expert its work, as a PNG file.

It needs neither a display nor pyplot's global state. It knows shares and names, not models.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_INCHES_PER_ROW, _INCHES_PER_EXPERT = 0.24, 0.5
_WIDTHS, _HEIGHTS = (3.0, 12.0), (2.4, 16.0)


def plot_shares(
    shares: npt.NDArray[np.float64],
    layers: Sequence[int],
    domains: Sequence[str],
    save_to: Path,
) -> None:
    """Draws one panel per domain: experts across, layers down, the domain's share as colour.

    White is the share that all domains have where experts ignore them, 1 / D. An expert without
    load is left grey.

    Args:
        shares: [L, D, E], each domain's share of an expert's load; NaN for one without load.
        layers: numbers of the L layers.
        domains: names of the D domains.
        save_to: file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    _, num_domains, num_experts = shares.shape
    width = float(np.clip(1.2 + _INCHES_PER_EXPERT * num_experts, *_WIDTHS))
    height = float(np.clip(1.2 + _INCHES_PER_ROW * len(layers), *_HEIGHTS))
    figure = Figure(figsize=(width * num_domains + 1.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, num_domains, sharey=True, squeeze=False)[0]
    scale = TwoSlopeNorm(vcenter=1 / num_domains, vmin=0.0, vmax=1.0)  # two domains or more
    for number, panel in enumerate(panels):
        panel.set_facecolor("0.7")
        image = panel.imshow(
            shares[:, number], aspect="auto", interpolation="nearest", norm=scale, cmap="RdBu_r"
        )
        panel.set_title(domains[number].replace("$", r"\$"), fontsize=10)
        panel.set_xticks(range(num_experts), [str(it) for it in range(num_experts)])
        panel.set_xlabel("expert")
    panels[0].set_yticks(range(len(layers)), [str(it) for it in layers], fontsize=7)
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels), label="share of the expert's work", shrink=0.8)
    figure.savefig(save_to, format="png", dpi=110)

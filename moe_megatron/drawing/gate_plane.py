"""Draws a plane through what a gate sees, coloured by its first choice. It knows numbers only."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.style import ABSENT, COLOURS, legend_beside, page, width_of

_NAMED = len(COLOURS) - 1
"""Experts with a colour of their own; the others are grey. Black is for outlines."""


class _Plane(Protocol):
    """What is drawn; see `analytics.gate_plane`."""

    @property
    def points(self) -> npt.NDArray[np.float64]: ...
    @property
    def first_choice(self) -> npt.NDArray[np.int64]: ...
    @property
    def grid(self) -> npt.NDArray[np.int64]: ...
    @property
    def extent(self) -> tuple[float, float, float, float]: ...
    @property
    def variance(self) -> tuple[float, float]: ...
    @property
    def agreement(self) -> float: ...
    @property
    def num_experts(self) -> int: ...


def plot_gate_plane(plane: _Plane, layer: int, columns: int = 2) -> Picture:
    """Background: the gate's first choice on the plane; dots: tokens, by their own first choice.

    The seven experts that are most tokens' first choice have colours of their own.

    Args:
        plane: What to draw.
        layer: Number of the layer.
        columns: Of the page that the figure spans, 1 or 2.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D

    counts = np.bincount(plane.first_choice, minlength=plane.num_experts)
    named = np.argsort(-counts, kind="stable")[: min(_NAMED, int((counts > 0).sum()))]
    slots = np.full(plane.num_experts, len(named))
    slots[named] = np.arange(len(named))
    colours = [*COLOURS[: len(named)], ABSENT]
    palette = ListedColormap(colours)
    held = sum(plane.variance)
    with page(width_of(columns), 4.2) as figure:
        panel = figure.subplots()
        panel.imshow(
            slots[plane.grid], origin="lower", extent=plane.extent, cmap=palette, vmin=0,
            vmax=len(named), alpha=0.45,
        )  # fmt: skip
        panel.scatter(
            plane.points[:, 0], plane.points[:, 1], s=12,
            c=[colours[it] for it in slots[plane.first_choice]],
            edgecolors="black", linewidths=0.4,
        )  # fmt: skip
        panel.set_title(
            f"Layer {layer}: the gate's first choice on a plane that holds {held:.0%} of the "
            f"variance of its inputs, and tokens by their own first choice, which "
            f"{plane.agreement:.0%} share with the plane",
            wrap=True,
        )
        for name, share, axis in zip("12", plane.variance, (panel.xaxis, panel.yaxis), strict=True):
            axis.set_label_text(f"principal component {name} ({share:.0%} of variance)")
        marks = [
            Line2D([], [], marker="o", linestyle="", color=colour, markeredgecolor="black",
                   markeredgewidth=0.4, label=f"expert {expert}: {counts[expert]} tokens")
            for expert, colour in zip(named.tolist(), colours, strict=False)
        ]  # fmt: skip
        rest = int(counts.sum() - counts[named].sum())
        if plane.num_experts > len(named):
            marks.append(
                Line2D([], [], marker="s", linestyle="", color=ABSENT, label=f"others: {rest}")
            )
        legend_beside(panel, columns, handles=marks)
    return Picture(figure)

"""Draws experts as a graph of which share tokens. It knows numbers and names, not models."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.style import ABSENT, COLOURS, QUIET, SMALL, page, plain, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64Array = npt.NDArray[np.float64]

_ROUNDS = 300
_TALLEST = 4.6
_NUMBERED = 32
"""Experts for each column of a page that have room for their numbers."""
_LARGEST = 11.0
"""Diameter of the dots of experts with their fair share, together, in points for each inch."""


def plot_expert_graph(
    lift: Float64Array,
    loads: Float64Array,
    layer: int,
    layout: str,
    domains: Sequence[str | None] | None = None,
    columns: int = 2,
) -> Picture:
    """Experts as dots, pairs above what their loads explain as lines.

    Args:
        lift: [E, E], symmetric; 1 where a pair is not surely different, NaN where it is not known.
        loads: [E], shares of the load.
        layer: Number of the layer.
        layout: One of `LAYOUTS`.
        domains: A name for each expert, by which it is coloured; None for one without.
        columns: Of the page that the figure spans, 1 or 2.
    """
    pull = np.nan_to_num(np.where(lift > 1, lift - 1, 0.0))
    at = LAYOUTS[layout](pull)
    width = width_of(columns)
    names = sorted({it for it in domains or () if it})
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    fill = [colours.get(it or "", ABSENT) for it in domains] if domains else [COLOURS[4]] * len(at)
    with page(width, min(width, _TALLEST) + 0.4 + 0.15 * len(names)) as figure:
        panel = figure.subplots()
        pairs = _draw_lines(panel, pull, at)
        fair = (width * _LARGEST) ** 2 / len(at)  # square points
        panel.scatter(at[:, 0], at[:, 1], s=np.minimum(loads * len(at), 4.0) * fair, c=fill,
                      edgecolors="black", linewidths=0.5, zorder=2)  # fmt: skip
        if len(at) <= _NUMBERED * columns:
            _number(panel, at)
        panel.axis("off")
        panel.margins(0.1)
        possible = len(at) * (len(at) - 1) // 2
        most = f", at most {pull.max() + 1:.1f} times as many (widest line)" if pairs else ""
        figure.suptitle(
            f"Layer {layer}: {pairs} of {possible} pairs of experts share more tokens than their "
            f"loads explain{most}; area: load",
            x=0.02, ha="left", wrap=True,
        )  # fmt: skip
        if names:
            _explain(figure, colours)
    return Picture(figure)


def _draw_lines(panel: "Axes", pull: Float64Array, at: Float64Array) -> int:
    """Lines between pairs that pull each other, weak ones first; gives their number."""
    ends = np.argwhere(np.triu(pull) > 0)
    for i, j in ends[np.argsort(pull[tuple(ends.T)])]:
        weight = float(pull[i, j] / pull.max())
        panel.plot(*at[[i, j]].T, color=QUIET, linewidth=0.4 + 3.2 * weight,
                   alpha=0.25 + 0.6 * weight, zorder=1)  # fmt: skip
    return len(ends)


def _number(panel: "Axes", at: Float64Array) -> None:
    from matplotlib.patheffects import withStroke

    for expert, place in enumerate(at):
        panel.annotate(
            str(expert), place, ha="center", va="center", fontsize=SMALL, zorder=3,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip


def _explain(figure: "Figure", colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    figure.legend(
        handles=[
            Line2D([], [], marker="o", linestyle="", color=colour, markeredgecolor="black",
                   markeredgewidth=0.5, label=f"largest share of its work from {plain(name)}")
            for name, colour in colours.items()
        ],
        loc="outside lower left",
    )  # fmt: skip


def circle(pull: Float64Array) -> Float64Array:
    """Places on a circle, in the order of the numbers. [E, 2]"""
    angle = np.linspace(0, 2 * np.pi, len(pull), endpoint=False)
    return np.column_stack([np.sin(angle), np.cos(angle)])


def force_directed(pull: Float64Array) -> Float64Array:
    """Places where pulls of pairs and the push between all are in balance. [E, 2]

    Fruchterman and Reingold 1991: with k the wanted distance and d the real one, pairs attract by
    d^2 / k times their pull, all repel by k^2 / d, and nothing moves further than a temperature
    that falls. It begins near a circle, always with the same places, so equal pulls are equal
    pictures.

    Args:
        pull: [E, E], symmetric, 0 or more.
    """
    at = circle(pull) + np.random.default_rng(0).normal(scale=0.1, size=(len(pull), 2))
    wanted = np.sqrt(4.0 / len(at))
    strength = pull / (pull.max() or 1.0)
    for heat in np.linspace(0.2, 0.005, _ROUNDS):
        apart = at[:, None] - at[None]
        distance = np.maximum(np.linalg.norm(apart, axis=-1), 1e-3)
        push = wanted**2 / distance**2 - strength * distance / wanted
        step = (apart * push[..., None]).sum(axis=1) - at  # and all to the middle
        length = np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)
        at = at + step / length * np.minimum(length, heat)
    return at


LAYOUTS: Mapping[str, Callable[[Float64Array], Float64Array]] = {
    "force_directed": force_directed,
    "circle": circle,
}

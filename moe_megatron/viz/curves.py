"""Draws how trainings went: loss, and the imbalance of their routers, one line a run.

It knows numbers and labels, not runs or files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.viz.picture import Picture

_WIDTH, _HEIGHT = 7.0, 3.2
_SMOOTH = 25
"""About how many averages a noisy line is drawn as, over its faint steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One run."""

    label: str
    steps: Sequence[int]
    losses: Sequence[float | None]
    """Training loss of each step."""
    evaluations: Sequence[tuple[int, float]] = ()
    """Step and validation loss."""
    imbalances: Sequence[float] = ()
    """Of the most imbalanced layer, of each step; empty where it was not measured."""


def draw_curves(curves: Sequence[Curve], save_to: str | Path | None = None) -> Picture:
    """Draw runs on top of each other.

    Args:
        curves: The runs.
        save_to: File to write the picture to; None writes none.

    Raises:
        DataError: None of them has a step, or the file cannot be written.
    """
    if not any(curve.steps for curve in curves):
        raise DataError("there is no step to draw yet; train first.")
    from matplotlib.figure import Figure

    routed = any(curve.imbalances for curve in curves)
    rows = 2 if routed else 1
    figure = Figure(figsize=(_WIDTH, _HEIGHT * rows), layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for number, curve in enumerate(curves):
        colour = f"C{number}"
        losses = [math.nan if loss is None else loss for loss in curve.losses]
        panels[0].plot(curve.steps, losses, color=colour, alpha=0.25, linewidth=1)
        panels[0].plot(*_averages(curve.steps, losses), color=colour, label=curve.label)
        if curve.evaluations:
            panels[0].plot(*zip(*curve.evaluations, strict=True), "o", color=colour, markersize=5)
        if curve.imbalances:
            panels[1].plot(curve.steps, curve.imbalances, color=colour, linewidth=1)
    panels[0].set_ylabel("loss, nats per token")
    if len(curves) > 1:
        panels[0].legend(frameon=False)
    if routed:
        panels[1].set_ylabel("imbalance (1 is even)")
        panels[1].set_ylim(bottom=1.0)
    panels[-1].set_xlabel("step")
    if any(curve.evaluations for curve in curves):
        panels[0].set_title("training (line) and validation (dots)", fontsize=10)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.get_major_locator().set_params(integer=True)
    picture = Picture(figure)
    if save_to is not None:
        picture.save(save_to)
    return picture


def _averages(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of equally many neighbouring steps; the values themselves where there are few."""
    width = max(1, len(values) // _SMOOTH)
    groups = [
        range(start, min(start + width, len(values))) for start in range(0, len(values), width)
    ]
    return (
        [sum(steps[i] for i in group) / len(group) for group in groups],
        [sum(values[i] for i in group) / len(group) for group in groups],
    )

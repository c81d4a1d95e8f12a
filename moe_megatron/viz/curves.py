"""Draws how trainings went: loss, and the imbalance of their routers, one line a run.

It knows numbers and labels, not runs or files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from moe_megatron.drawing import COLOURS, TWO_COLUMNS, Picture, finished, page
from moe_megatron.errors import DataError

_HEIGHT = 2.4
"""Of a panel, in inches."""
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
    routed = any(curve.imbalances for curve in curves)
    rows = 2 if routed else 1
    with page(TWO_COLUMNS, _HEIGHT * rows) as figure:
        panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        for curve, colour in zip(curves, cycle(COLOURS)):
            losses = [math.nan if loss is None else loss for loss in curve.losses]
            panels[0].plot(curve.steps, losses, color=colour, alpha=0.25, linewidth=0.8)
            panels[0].plot(*_averages(curve.steps, losses), color=colour, label=curve.label)
            if curve.evaluations:
                panels[0].plot(*zip(*curve.evaluations, strict=True), "o", color=colour)
            if curve.imbalances:
                panels[1].plot(curve.steps, curve.imbalances, color=colour, linewidth=0.8)
        panels[0].set_ylabel("loss, nats per token")
        if len(curves) > 1:
            panels[0].legend()
        if routed:
            panels[1].set_title("Load of the fullest expert over the mean, in the worst layer")
            panels[1].set_ylabel("imbalance (1 is even)")
            panels[1].set_ylim(bottom=1.0)
        panels[-1].set_xlabel("step")
        panels[0].set_title(_title(curves))
        for panel in panels:
            panel.xaxis.get_major_locator().set_params(integer=True)
    return finished(Picture(figure), save_to)


def _title(curves: Sequence[Curve]) -> str:
    evaluated = any(curve.evaluations for curve in curves)
    seen = "Training loss (faint: each step)"
    return f"{seen}, and validation loss (dots)" if evaluated else seen


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

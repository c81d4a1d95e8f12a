"""Draws how trainings went: loss, and the imbalance of their routers, one line a run.

It knows numbers and labels, not runs or files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.drawing import Picture, finished
from moe_megatron.drawing.lines import Line, Panel, plot_lines
from moe_megatron.errors import DataError


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
    evaluated = any(curve.evaluations for curve in curves)
    losses = Panel(
        title=f"Training loss (faint: each step){', validation loss (dots)' if evaluated else ''}",
        axis="loss, nats per token",
        lines=[
            Line(
                label=curve.label,
                at=curve.steps,
                values=[math.nan if loss is None else loss for loss in curve.losses],
                dots=curve.evaluations,
                averaged=True,
            )
            for curve in curves
        ],
    )
    imbalances = Panel(
        title="Load of the fullest expert over the mean, in the worst layer",
        axis="imbalance (1 is even)",
        lines=[
            Line(
                label=curve.label,
                at=curve.steps if curve.imbalances else (),
                values=curve.imbalances,
            )
            for curve in curves
        ],
        bottom=1.0,
    )
    routed = any(curve.imbalances for curve in curves)
    return finished(plot_lines([losses, imbalances] if routed else [losses]), save_to)

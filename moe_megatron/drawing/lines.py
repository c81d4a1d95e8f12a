"""Draws panels of lines over steps, one below the other. It knows numbers and labels, not runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.style import COLOURS, page, plain, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 2.2
"""Of a panel, in inches."""
_MOST_MEANS = 25
"""About how many averages a noisy line is drawn as, over its faint values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One run in one panel."""

    label: str
    at: Sequence[float]
    """Steps."""
    values: Sequence[float]
    """NaN where there is none."""
    low: Sequence[float] = ()
    """As `high`, the ends of a faint band around the line."""
    high: Sequence[float] = ()
    dots: Sequence[tuple[float, float]] = ()
    """Steps and values that are marked beside the line."""
    averaged: bool = False
    """Draw the values faintly, and over them means of neighbouring ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One quantity."""

    title: str
    axis: str
    """What the axis says, with its unit."""
    lines: Sequence[Line]
    """Of all runs in one order; an empty one takes its colour and is not drawn."""
    bottom: float | None = None
    """Where the axis begins; None: where the values do."""


def plot_lines(panels: Sequence[Panel], across: str = "step", columns: int = 2) -> Picture:
    """Draw panels below each other, over the same steps; a run has one colour in all of them.

    Args:
        panels: One or more.
        across: What the axis of all panels says.
        columns: Of the page that the figure spans, 1 or 2.
    """
    with page(width_of(columns), _HEIGHT * len(panels)) as figure:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, shown in zip(axes, panels, strict=True):
            for line, colour in zip(shown.lines, cycle(COLOURS), strict=False):
                _draw(panel, line, colour)
            panel.set_title(shown.title, wrap=True)
            panel.set_ylabel(shown.axis)
            if shown.bottom is not None:
                panel.set_ylim(bottom=shown.bottom)
            panel.xaxis.get_major_locator().set_params(integer=True)
        if len(panels[0].lines) > 1:
            axes[0].legend()
        axes[-1].set_xlabel(across)
    return Picture(figure)


def _draw(panel: "Axes", line: Line, colour: str) -> None:
    if not line.at:
        return
    label = plain(line.label)
    if line.low:
        panel.fill_between(line.at, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
    if line.averaged:
        panel.plot(line.at, line.values, color=colour, alpha=0.25, linewidth=0.8)
        panel.plot(*averages(line.at, line.values), color=colour, label=label)
    else:
        panel.plot(line.at, line.values, color=colour, label=label, linewidth=0.9)
    if line.dots:
        panel.plot(*zip(*line.dots, strict=True), "o", color=colour)


def averages(at: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of equally many neighbouring values, but for NaN; the values where there are few."""
    width = max(1, len(values) // _MOST_MEANS)
    groups = [
        range(start, min(start + width, len(values))) for start in range(0, len(values), width)
    ]
    return [_mean([at[i] for i in it]) for it in groups], [
        _mean([values[i] for i in it]) for it in groups
    ]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan

"""Means with their intervals, one line a row, as inline SVG.

Colours are CSS variables of the page. It knows labels and numbers, nothing about what they mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from moe_megatron.benchmarks.line_chart import format_value, nice_ticks

_WIDTH, _LEFT, _RIGHT = 560, 150, 16
_ROW, _TOP, _BOTTOM = 24, 8, 40
_STRONG, _WEAK = "var(--line-0)", "var(--line-7)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One row."""

    label: str
    mean: float
    low: float
    """NaN, as `high`, where there is no interval."""
    high: float
    clear: bool = True
    """Whether it stands out; others are drawn in grey."""


def interval_chart(
    title: str, estimates: Sequence[Estimate], *, axis: str, note: str = "", mark: float = 0.0
) -> str:
    """Draws a `<figure>`: a dot for each mean, a line for each interval, a rule at `mark`.

    Args:
        title: What is shown.
        estimates: The rows, from top to bottom.
        axis: What the axis says, with its unit.
        note: One sentence below the title.
        mark: Where the rule stands; the axis includes it.
    """
    ends = [it for row in estimates for it in (row.mean, row.low, row.high) if math.isfinite(it)]
    low, high = min([*ends, mark]), max([*ends, mark])
    pad = (high - low) * 0.04 or 0.01
    low, high = low - pad, high + pad

    def sx(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    height = _TOP + _ROW * len(estimates) + _BOTTOM
    floor = height - _BOTTOM
    parts = []
    for tick in nice_ticks(low, high):
        parts.append(
            f'<line class="grid" x1="{sx(tick)}" x2="{sx(tick)}" y1="{_TOP}" y2="{floor}"/>'
        )
        parts.append(
            f'<text class="tick" x="{sx(tick)}" y="{floor + 16}" text-anchor="middle">'
            f"{format_value(round(tick, 9))}</text>"
        )
    parts.append(
        f'<line x1="{sx(mark)}" x2="{sx(mark)}" y1="{_TOP}" y2="{floor}" stroke="var(--dim)" '
        'stroke-width="1.5"/>'
    )
    for number, row in enumerate(estimates):
        y = _TOP + _ROW * (number + 0.5)
        color = _STRONG if row.clear else _WEAK
        parts.append(
            f'<text class="tick name" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">'
            f"{escape(row.label)}</text>"
        )
        if math.isfinite(row.low):
            parts.append(
                f'<line x1="{sx(row.low)}" x2="{sx(row.high)}" y1="{y}" y2="{y}" '
                f'stroke="{color}" stroke-width="3" stroke-linecap="round" opacity="0.55"/>'
            )
        parts.append(f'<circle cx="{sx(row.mean)}" cy="{y}" r="4.5" fill="{color}"/>')
    parts.append(
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{height - 4}" text-anchor="end">'
        f"{escape(axis)}</text>"
    )
    words = escape(f"{title}. {' '.join(map(_described, estimates))}")
    return (
        f'<figure class="intervals"><figcaption><h3>{escape(title)}</h3>'
        f"{f'<p>{escape(note)}</p>' if note else ''}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{words}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _described(row: Estimate) -> str:
    """A row in words, for assistive software."""
    if not math.isfinite(row.low):
        return f"{row.label}: {format_value(row.mean)}."
    ends = f"{format_value(row.low)} to {format_value(row.high)}"
    return f"{row.label}: {format_value(row.mean)}, interval {ends}."

"""The loss curves of a bench, as inline SVG: its page needs neither script nor network.

Colours are CSS variables of the page (`page_style`), so that the same file serves light and dark
mode. It knows points and labels, nothing about training.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 560
HEIGHT = 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 10, 36
_PLOT_WIDTH = WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT = HEIGHT - _TOP - _BOTTOM
MOST_LINES = 8
"""So many colours there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: shown in the legend.
        x: step of each point, increasing.
        y: value of each point; NaN interrupts the line.
        low: lower edge of a band around the line, if there is one.
        high: upper edge of the band.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in low..high, spaced by 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_value(value: float) -> str:
    """A value with few digits: 12,300, 1.234, 2e-05; "-" if it is not finite."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    if abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4g}"


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _range(series: Sequence[Series]) -> tuple[tuple[float, float], tuple[float, float]]:
    xs = [x for line in series for x in line.x] or [0.0]
    ys = [y for line in series for y in _finite([*line.y, *line.low, *line.high])]
    ys = ys or [0.0]
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    x_low, x_high = min(xs), max(xs)
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    return (x_low, x_high), (low - pad, high + pad)


def line_chart(
    title: str,
    series: Sequence[Series],
) -> str:
    """Draws a `<figure>` with title, SVG and legend.

    Args:
        title: what is shown, with its unit.
        series: the lines, at most `MOST_LINES`; points that are not finite are left out.
    """
    (x_low, x_high), (y_low, y_high) = _range(series)

    def sx(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * _PLOT_WIDTH, 1)

    def sy(y: float) -> float:
        return round(_TOP + (y_high - y) / (y_high - y_low) * _PLOT_HEIGHT, 1)

    parts: list[str] = []
    for tick in nice_ticks(y_low, y_high):
        y = sy(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.5}" text-anchor="end">')
        parts.append(f"{format_value(tick)}</text>")
    for tick in nice_ticks(x_low, x_high, 6):
        if tick == int(tick):
            parts.append(
                f'<text class="tick" x="{sx(tick)}" y="{HEIGHT - _BOTTOM + 16}" '
                f'text-anchor="middle">{tick:,.0f}</text>'
            )
    parts.append(
        f'<text class="tick" x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step</text>'
    )
    for index, line in enumerate(series):
        color = f"var(--line-{index})"
        points = [(sx(x), sy(y)) if math.isfinite(y) else None for x, y in _pairs(line.x, line.y)]
        if line.low:
            upper = [(sx(x), sy(y)) for x, y in _pairs(line.x, line.high) if math.isfinite(y)]
            lower = [(sx(x), sy(y)) for x, y in _pairs(line.x, line.low) if math.isfinite(y)]
            band = " ".join(f"{x},{y}" for x, y in [*upper, *reversed(lower)])
            parts.append(f'<polygon class="band" points="{band}" fill="{color}"/>')
        parts.append(f'<path class="line" d="{_path(points)}" stroke="{color}"/>')
        drawn = [point for point in points if point is not None]
        if len(drawn) == 1:
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in drawn]
    label = escape(f"{title}. {_describe(series)}")
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>{_legend(series)}</figure>"
    )


def _pairs(x: Sequence[float], y: Sequence[float]) -> Iterator[tuple[float, float]]:
    return zip(x, y, strict=True)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    commands, pen_down = [], False
    for point in points:
        if point is not None:
            commands.append(f"{'L' if pen_down else 'M'}{point[0]} {point[1]}")
        pen_down = point is not None
    return "".join(commands)


def _describe(series: Sequence[Series]) -> str:
    """The chart in words, for assistive software."""
    sentences = []
    for line in series:
        values = _finite(line.y)
        if values:
            sentences.append(
                f"{line.name}: from {format_value(values[0])} to {format_value(values[-1])}, "
                f"lowest {format_value(min(values))}, highest {format_value(max(values))}."
            )
    return " ".join(sentences)


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    items = (
        f'<span><i style="background:{f"var(--line-{index})"}"></i>{escape(line.name)}</span>'
        for index, line in enumerate(series)
    )
    return f'<div class="legend">{"".join(items)}</div>'

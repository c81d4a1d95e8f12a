"""Line charts as inline SVG, with their data as JSON for the tooltip script.

They are drawn here rather than in the browser, so that they work without JavaScript, on paper and
with assistive software. Colours are CSS variables or classes, so that the same file serves light
and dark mode. It knows points and labels, nothing about training.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 560
HEIGHT = 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 10, 36
_PLOT_WIDTH = WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT = HEIGHT - _TOP - _BOTTOM
MAX_LEGEND = 8
"""Largest number of lines with distinct colours; more lines share a colour ramp."""
_MOST_POINTS, _MOST_DOTS = 200, 40
"""Of a line of few points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: shown in legend and tooltip.
        x: step of each point, increasing.
        y: value of each point; NaN interrupts the line.
        low: lower edge of a band around the line, if there is one.
        high: upper edge of the band.
        markers: whether to draw each point as a dot.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    markers: bool = False


def few_points(name: str, x: Sequence[float], y: Sequence[float]) -> Series:
    """A line of values that are measured now and then: dots while they are few, thinned if many."""
    stride = -(-len(x) // _MOST_POINTS) or 1
    x, y = x[::stride], y[::stride]
    return Series(name=name, x=x, y=y, markers=len(x) <= _MOST_DOTS)


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


def color_of(index: int, count: int) -> str:
    """CSS colour of line `index` of `count`: distinct for few lines, on a ramp for many."""
    if count <= MAX_LEGEND:
        return f"var(--line-{index})"
    part = round(100 * index / (count - 1))
    if part <= 50:
        return f"color-mix(in oklab, var(--ramp-middle) {2 * part}%, var(--ramp-start))"
    return f"color-mix(in oklab, var(--ramp-end) {2 * part - 100}%, var(--ramp-middle))"


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _range(
    series: Sequence[Series], include: Sequence[float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    xs = [x for line in series for x in line.x] or [0.0]
    ys = [y for line in series for y in _finite([*line.y, *line.low, *line.high])]
    ys = [*ys, *include] or [0.0]
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    # A value to include, such as zero or perfect balance, is a clean edge and needs no padding.
    y_low = low if low in include else low - pad
    y_high = high if high in include and high > low else high + pad
    x_low, x_high = min(xs), max(xs)
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    return (x_low, x_high), (y_low, y_high)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    include: Sequence[float] = (),
) -> str:
    """Draws a `<figure>` with title, SVG, legend and data.

    Args:
        title: what is shown, with its unit.
        series: the lines; points that are not finite are left out.
        note: one sentence below the title on how to read the chart.
        include: y values that the axis must include.
    """
    (x_low, x_high), (y_low, y_high) = _range(series, include)

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
        color = color_of(index, len(series))
        points = [(sx(x), sy(y)) if math.isfinite(y) else None for x, y in _pairs(line.x, line.y)]
        if line.low:
            upper = [(sx(x), sy(y)) for x, y in _pairs(line.x, line.high) if math.isfinite(y)]
            lower = [(sx(x), sy(y)) for x, y in _pairs(line.x, line.low) if math.isfinite(y)]
            band = " ".join(f"{x},{y}" for x, y in [*upper, *reversed(lower)])
            parts.append(f'<polygon class="band" points="{band}" fill="{color}"/>')
        parts.append(f'<path class="line" d="{_path(points)}" stroke="{color}"/>')
        drawn = [point for point in points if point is not None]
        if line.markers or len(drawn) == 1:
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in drawn]
    label = escape(f"{title}. {_describe(series)}")
    data = _tooltip_data(series, sx)
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3>'
        f"{f'<p>{escape(note)}</p>' if note else ''}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'{"".join(parts)}<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></svg>'
        f'{_legend(series)}<script type="application/json">{data}</script></figure>'
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
    for line in series[:MAX_LEGEND]:
        values = _finite(line.y)
        if values:
            sentences.append(
                f"{line.name}: from {format_value(values[0])} to {format_value(values[-1])}, "
                f"lowest {format_value(min(values))}, highest {format_value(max(values))}."
            )
    if len(series) > MAX_LEGEND:
        sentences.append(f"And {len(series) - MAX_LEGEND} more lines.")
    return " ".join(sentences)


def _legend(series: Sequence[Series]) -> str:
    if len(series) > MAX_LEGEND:
        return (
            f'<div class="legend"><span>{escape(series[0].name)}</span><i class="ramp"></i>'
            f"<span>{escape(series[-1].name)}</span></div>"
        )
    if len(series) < 2:
        return ""
    items = (
        f'<span><i style="background:{color_of(index, len(series))}"></i>{escape(line.name)}</span>'
        for index, line in enumerate(series)
    )
    return f'<div class="legend">{"".join(items)}</div>'


def _tooltip_data(series: Sequence[Series], sx: Callable[[float], float]) -> str:
    lines = [
        {
            "name": line.name,
            "color": color_of(index, len(series)),
            "step": [int(x) for x in line.x],
            "x": [sx(x) for x in line.x],
            "y": [format_value(y) for y in line.y],
        }
        for index, line in enumerate(series)
    ]
    return script_json(lines)


def script_json(data: object) -> str:
    """JSON that is safe inside a `<script>` element, whatever strings it contains."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

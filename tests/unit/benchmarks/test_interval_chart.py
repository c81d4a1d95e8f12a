import math
import re

from moe_megatron.benchmarks.interval_chart import Estimate, interval_chart

ROWS = [
    Estimate(label="a<b", mean=-0.02, low=-0.03, high=-0.01),
    Estimate(label="wide", mean=0.01, low=-0.02, high=0.04, clear=False),
    Estimate(label="alone", mean=0.0, low=math.nan, high=math.nan),
]


def test_chart_places_means_and_ends_in_their_order() -> None:
    html = interval_chart("Loss", ROWS, axis="nats", note="Read it.")
    dots = [float(it) for it in re.findall(r'<circle cx="([\d.]+)"', html)]
    lines = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="\3" stroke="var', html)
    assert len(dots) == 3
    assert len(lines) == 2  # no interval of one seed
    assert dots[0] < dots[2] < dots[1]
    for dot, (low, high, _) in zip(dots, lines, strict=False):
        assert abs((float(low) + float(high)) / 2 - dot) < 0.2
    assert "var(--line-7)" in html


def test_chart_says_its_rows_in_words_and_escapes_labels() -> None:
    html = interval_chart("Loss", ROWS, axis="nats")
    assert "a&lt;b: -0.02, interval -0.03 to -0.01." in html
    assert "alone: 0." in html
    assert "a<b" not in html

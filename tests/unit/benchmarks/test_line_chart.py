import math
import re
import xml.etree.ElementTree as ET

import pytest

from moe_megatron.benchmarks.line_chart import Series, format_value, line_chart, nice_ticks


def parse(html: str) -> ET.Element:
    return ET.fromstring(html)  # raises when a tag is open or text is not escaped


def test_line_chart_is_well_formed_and_describes_itself() -> None:
    line = Series(name="a < b", x=[1, 2, 3], y=[4.0, math.nan, 2.0])
    figure = parse(line_chart("Loss & more", [line]))
    svg = figure.find("svg")
    assert svg is not None
    assert svg.attrib["role"] == "img"
    assert svg.attrib["aria-label"] == ("Loss & more. a < b: from 4 to 2, lowest 2, highest 4.")
    path = svg.find("path")
    assert path is not None
    assert path.attrib["d"].count("M") == 2  # NaN interrupts the line


@pytest.mark.parametrize("y", [[math.nan, math.nan], [3.0, 3.0], [0.0, 0.0], [1e-12, 1e12]])
def test_line_chart_degenerate_values_stay_finite(y: list[float]) -> None:
    html = line_chart("t", [Series(name="x", x=[1, 1], y=y)])
    assert not re.search(r'="[^"]*\b(nan|inf)\b', html)


def test_band_follows_low_and_high() -> None:
    line = Series(name="x", x=[1, 2], y=[1.0, 2.0], low=[0.0, 1.0], high=[2.0, 3.0])
    polygon = parse(line_chart("t", [line])).find("svg/polygon")
    assert polygon is not None
    assert len(polygon.attrib["points"].split()) == 4


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.93, 1.01, [0.94, 0.96, 0.98, 1.0]), (3, 3, [3])],
)
def test_nice_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_format_value() -> None:
    values = [0.0, 1.23456, 12345.6, 2e-5, 1e9, math.nan, -0.5]
    expected = ["0", "1.235", "12,346", "2e-05", "1e+09", "-", "-0.5"]
    assert [format_value(value) for value in values] == expected

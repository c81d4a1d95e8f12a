"""One style and one way to save: what files hold, and a figure of somebody else's in one file."""

import re
import zlib

import matplotlib
import numpy as np
import pytest

from moe_megatron.drawing import ONE_COLUMN, TWO_COLUMNS, Picture, page, plain
from moe_megatron.errors import DataError


def plot_bias(bias_E: np.ndarray, width: float = ONE_COLUMN) -> Picture:
    """As a file from outside draws it."""
    with page(width, 2.0) as figure:
        panel = figure.subplots()
        panel.bar(range(len(bias_E)), bias_E)
        panel.set_title(plain("The bias costs $5 or $6"))
    return Picture(figure)


@pytest.fixture
def picture() -> Picture:
    return plot_bias(np.array([0.1, 0.3, -0.2]))


def test_text_of_an_svg_is_text(picture, tmp_path):
    svg = picture.save(tmp_path / "bias.svg").read_text()
    assert "The bias costs $5 or $6</text>" in svg
    assert "'DejaVu Sans'" in svg


def test_fonts_are_embedded_in_a_pdf_as_truetype(picture, tmp_path):
    data = picture.save(tmp_path / "bias.pdf").read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL)
    assert b"/FontFile2" in data + b"".join(_inflated(it) for it in streams)
    assert b"/Type3" not in data


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


@pytest.mark.parametrize(("width", "dots"), [(ONE_COLUMN, 670), (TWO_COLUMNS, 1400)])
def test_a_png_has_the_width_of_columns(width, dots, tmp_path):
    png = plot_bias(np.ones(3), width).save(tmp_path / "new" / "bias.png").read_bytes()
    assert int.from_bytes(png[16:20]) == dots  # of the header


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_equal_numbers_are_equal_files(kind, tmp_path):
    files = [plot_bias(np.arange(4)).save(tmp_path / f"{n}.{kind}").read_bytes() for n in (1, 2)]
    assert files[0] == files[1]


def test_the_style_ends_with_the_figure(picture):
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]
    picture._repr_png_()
    assert matplotlib.rcParams["pdf.fonttype"] == matplotlib.rcParamsDefault["pdf.fonttype"]


def test_a_name_without_a_known_ending_is_refused_and_leaves_nothing(picture, tmp_path):
    for name in ("bias", "bias.xyz", "bias.jpg"):
        with pytest.raises(DataError, match=rf"{name} \('.*' is no kind of picture\); give a name"):
            picture.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []

"""Every figure spans one or two columns of a page, with all of its text on it."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text

from moe_megatron.drawing import ONE_COLUMN, TWO_COLUMNS, Picture
from moe_megatron.drawing.affinity import plot_affinity
from moe_megatron.drawing.domains import plot_domains
from moe_megatron.drawing.expert_graph import plot_expert_graph
from moe_megatron.drawing.gate_plane import plot_gate_plane
from moe_megatron.drawing.lines import Line, Panel, plot_lines
from moe_megatron.drawing.pairs import plot_coactivation, plot_flow
from moe_megatron.drawing.saturation import plot_saturation
from moe_megatron.drawing.vocabulary import plot_vocabulary

LAYERS = (1, 2, 3)
EIGHT = range(8)
RNG = np.random.default_rng(0)
ONES = np.ones(len(LAYERS))
LIFT = RNG.uniform(0.2, 5, (8, 8))
EVIDENCE = SimpleNamespace(
    measured=ONES * 0.152, interval=(ONES * 0.141, ONES * 0.165), chance=ONES * 0.001,
    by_token=ONES * 0.048, predicted=ONES * 0.7, predicted_by_load=ONES * 0.3,
    share_error=np.full((3, 3, 8), 0.01), found=("domain", "token", "domain"),
)  # fmt: skip
PLANE = SimpleNamespace(
    points=RNG.normal(size=(60, 2)), first_choice=RNG.integers(8, size=60),
    grid=RNG.integers(8, size=(20, 20)), extent=(-3, 3, -3, 3), variance=(0.2, 0.12),
    agreement=0.39, num_experts=8,
)  # fmt: skip
AGREEMENT = SimpleNamespace(
    layers=LAYERS, share=ONES * 0.6, interval=(ONES * 0.5, ONES * 0.7), chance=ONES * 0.2,
    by_token=ONES * 0.4,
)  # fmt: skip
PANEL = Panel(
    title="Load of the fullest expert over the mean (line: mean of the layers, band: all of them)",
    axis="imbalance (1 is even)",
    lines=[Line(label=name, at=EIGHT, values=[1.0 + it for it in EIGHT]) for name in "ab"],
)
FIGURES: dict[str, Callable[[int], Picture]] = {
    "affinity": lambda columns: plot_affinity(
        RNG.random((3, 90, 8), np.float32), RNG.integers(8, size=(3, 90, 2)), LAYERS,
        ["token"] * 90, columns,
    ),
    "domains": lambda columns: plot_domains(
        RNG.dirichlet(np.ones(3), (3, 8)).transpose(0, 2, 1), LAYERS,
        ["code", "prose", "mathematics"], EVIDENCE, columns,
    ),
    "coactivation": lambda columns: plot_coactivation(LIFT + LIFT.T, 3, columns),
    "flow": lambda columns: plot_flow(
        [RNG.integers(1, 99, (8, 8))] * 2, [LIFT] * 2, LAYERS, columns
    ),
    "graph": lambda columns: plot_expert_graph(
        LIFT + LIFT.T, np.full(8, 1 / 8), 3, "force_directed", ["code", "prose"] * 4, columns
    ),
    "lines": lambda columns: plot_lines([PANEL, PANEL], columns=columns),
    "plane": lambda columns: plot_gate_plane(PLANE, 2, columns),
    "saturation": lambda columns: plot_saturation([100, 200], [AGREEMENT] * 2, 300, columns),
    "vocabulary": lambda columns: plot_vocabulary(
        [[("\u00b7mathematical", 0.9)] * 6] * 8, EIGHT, 2, 0.25, columns
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "width"), [(1, ONE_COLUMN), pytest.param(2, TWO_COLUMNS, marks=pytest.mark.deep)]
)
@pytest.mark.parametrize("name", FIGURES)
def test_text_lies_on_the_page(name, columns, width, tmp_path):
    picture = FIGURES[name](columns)
    assert picture.figure.get_figwidth() == width
    picture.save(tmp_path / f"{name}.pdf")
    assert b"/Type3" not in (tmp_path / f"{name}.pdf").read_bytes()
    picture.figure.draw_without_rendering()
    page = picture.figure.bbox
    for text in picture.figure.findobj(Text):
        box = text.get_window_extent()
        if not text.get_text() or not text.get_visible() or box.width == 0:
            continue
        clipped = text.get_clip_on()
        inside = box.x0 >= -1 and box.x1 <= page.x1 + 1 and box.y0 >= -1 and box.y1 <= page.y1 + 1
        assert inside or clipped, text.get_text()

"""Places of experts in a graph: joined ones attract each other, and equal numbers are equal."""

import numpy as np
import pytest

from moe_megatron.drawing.expert_graph import LAYOUTS, force_directed, plot_expert_graph


@pytest.fixture
def two_groups() -> np.ndarray:
    """Ten experts, even ones joined and odd ones joined."""
    pull = np.add.outer(np.arange(10), np.arange(10)) % 2 == 0
    return pull.astype(float) - np.eye(10)


def test_joined_experts_are_near_each_other(two_groups):
    at = force_directed(two_groups)
    apart = np.linalg.norm(at[:, None] - at[None], axis=-1)
    inside = apart[two_groups > 0]
    outside = apart[(two_groups == 0) & ~np.eye(10, dtype=bool)]
    assert inside.max() < outside.min()
    assert inside.min() > 0.05


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_are_finite_and_the_same_again(layout, two_groups):
    for pull in (two_groups, np.zeros((3, 3)), np.zeros((1, 1))):
        at = LAYOUTS[layout](pull)
        assert at.shape == (len(pull), 2)
        assert np.isfinite(at).all()
        assert np.array_equal(at, LAYOUTS[layout](pull))


def test_a_line_is_as_wide_as_what_it_joins():
    lift = np.full((3, 3), 1.0)
    lift[0, 1] = lift[1, 0] = 3.0
    lift[1, 2] = lift[2, 1] = 2.0
    lift[0, 2] = lift[2, 0] = np.nan
    picture = plot_expert_graph(lift, np.full(3, 1 / 3), 2, "circle", ["code", None, "prose"])
    weak, strong = picture.figure.axes[0].lines
    assert weak.get_linewidth() < strong.get_linewidth()
    assert "2 of 3 pairs" in picture.figure.get_suptitle()
    assert "at most 3.0 times" in picture.figure.get_suptitle()
    labels = [it.get_text() for it in picture.figure.legends[0].get_texts()]
    assert labels == ["largest share of its work from code", "largest share of its work from prose"]

"""Pictures of trainings: what is drawn, and how they are shown and saved."""

import math

import pytest

from moe_megatron.drawing.lines import averages
from moe_megatron.errors import DataError
from moe_megatron.viz.curves import Curve, draw_curves


def curve(label: str = "one", **given):
    steps = [1, 2, 3, 4]
    return Curve(**{"label": label, "steps": steps, "losses": [4.0, 3.0, None, 2.0]} | given)


def test_one_run_is_drawn_with_its_steps_and_evaluations():
    picture = draw_curves([curve(evaluations=[(2, 3.5), (4, 2.5)])])
    (panel,) = picture.figure.axes
    faint, line, dots = panel.lines
    assert list(faint.get_xdata()) == [1, 2, 3, 4]
    assert [it for it in faint.get_ydata() if not math.isnan(it)] == [4.0, 3.0, 2.0]
    assert len(line.get_xdata()) == 4
    assert list(dots.get_ydata()) == [3.5, 2.5]
    assert panel.get_legend() is None


def test_several_runs_have_a_legend_and_a_panel_for_imbalance():
    picture = draw_curves([curve("a", imbalances=[2.0, 1.5, 1.2, 1.1]), curve("b")])
    losses, imbalances = picture.figure.axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["a", "b"]
    assert list(imbalances.lines[0].get_ydata()) == [2.0, 1.5, 1.2, 1.1]


def test_a_long_noisy_line_is_averaged():
    steps, values = list(range(1, 1001)), [float(i % 2) for i in range(1000)]
    at, means = averages(steps, values)
    assert len(at) == len(means) == 25
    assert set(means) == {0.5}
    assert at[0] == sum(range(1, 41)) / 40


def test_nothing_to_draw_is_explained():
    with pytest.raises(DataError, match="there is no step to draw yet; train first"):
        draw_curves([Curve(label="empty", steps=[], losses=[])])


def test_a_notebook_shows_it_and_files_hold_it(tmp_path):
    picture = draw_curves([curve()])
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert "<svg" in picture.save(tmp_path / "new" / "run.svg").read_text()
    with pytest.raises(DataError, match=r"run.xyz \(.*give a name that ends in .png, .svg or .pdf"):
        picture.save(tmp_path / "run.xyz")
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"cannot write .*file: File exists; a file is where a directory is"
    ):
        picture.save(tmp_path / "file" / "run.png")

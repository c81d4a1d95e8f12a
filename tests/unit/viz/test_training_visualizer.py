"""Figures and films of a training: what they show is what the run recorded."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from moe_megatron import MoEModel, MoETrainer
from moe_megatron.errors import BackendUnavailableError, ConfigError, DataError
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE, read_routing
from moe_megatron.viz import TrainingVisualizer
from moe_megatron.viz.condensed import load_windows


def test_curves_are_the_records(make_run_dir):
    run = make_run_dir(steps=40, lost=2)
    picture = TrainingVisualizer(run).plot_training_curves(["loss", "imbalance", "z_loss"])
    loss, imbalance, z_loss = picture.figure.axes
    assert list(loss.lines[0].get_xdata()) == list(range(1, 41))
    assert loss.lines[0].get_ydata() == pytest.approx([9 - step / 40 for step in range(1, 41)])
    # layer 2 loses an expert after step 20, layer 3 stays even
    assert imbalance.lines[0].get_ydata() == pytest.approx([1.0] * 20 + [1.5] * 20)
    assert set(z_loss.lines[0].get_ydata()) == {2.0}
    assert imbalance.get_title(loc="left").startswith("Load of the fullest expert over the mean")


def test_other_runs_are_drawn_beside_it(make_run_dir):
    one, other = make_run_dir(), make_run_dir(name="other", healthy=True)
    visualizer = TrainingVisualizer(str(one))
    for include, label in (([other], "other"), ({"healthy": other}, "healthy")):
        picture = visualizer.plot_training_curves(["imbalance"], include)
        (panel,) = picture.figure.axes
        assert [it.get_text() for it in panel.get_legend().get_texts()] == ["run", label]
        assert set(panel.lines[1].get_ydata()) == {1.0}


def test_what_cannot_be_drawn_is_explained(make_run_dir, tmp_path):
    run = make_run_dir()
    visualizer = TrainingVisualizer(run)
    with pytest.raises(ConfigError, match=r"has no 'entropie'. Did you mean 'entropy'.*knows loss"):
        visualizer.plot_training_curves(["entropie"])
    with pytest.raises(ConfigError, match="metrics is empty; give at least one"):
        visualizer.plot_training_curves([])
    (run / ROUTING_FILE).unlink()
    with pytest.raises(DataError, match="no 'imbalance' was recorded in run; leave it out"):
        visualizer.plot_training_curves()
    with pytest.raises(DataError, match="has no record of routing; train a model with experts"):
        visualizer.animate_expert_evolution(tmp_path / "film.gif")
    with pytest.raises(ConfigError, match=r"a result of train\(...\) or a trainer, not 3"):
        TrainingVisualizer(3)
    trainer = MoETrainer(MoEModel(num_layers=1, hidden_size=32, num_experts=2))
    with pytest.raises(ConfigError, match=r"has no run yet; call train\(...\) first"):
        TrainingVisualizer(trainer)
    with pytest.raises(ConfigError, match="a run folder has none in memory; give model="):
        visualizer.plot_router_decision_boundaries("text", 1)


def test_a_film_has_a_frame_for_each_range_of_steps(make_run_dir, tmp_path):
    visualizer = TrainingVisualizer(make_run_dir(steps=40))
    film = visualizer.animate_expert_evolution(tmp_path / "films" / "one.gif", [10, 20, 40])
    with Image.open(film) as frames:
        assert frames.n_frames == 3
        pictures = []
        for number in range(3):
            frames.seek(number)
            pictures.append(np.asarray(frames.convert("RGB")))
    assert len({it.tobytes() for it in pictures}) == 3
    with pytest.raises(ConfigError, match=r"must be rising numbers of steps.* not \[20, 10\]"):
        visualizer.animate_expert_evolution(tmp_path / "two.gif", [20, 10])
    assert not (tmp_path / "two.gif").exists()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg: apt-get install ffmpeg")
def test_an_mp4_has_the_frames_of_the_film(make_run_dir, tmp_path):
    visualizer = TrainingVisualizer(make_run_dir(steps=40))
    film = visualizer.animate_expert_evolution(
        tmp_path / "one.mp4", [10, 20, 40], frames_per_second=4
    )
    assert film.read_bytes()[4:8] == b"ftyp"
    words = f"ffmpeg -v error -i {film} -f rawvideo -pix_fmt gray -".split()
    raw = subprocess.run(words, check=True, capture_output=True).stdout
    with Image.open(visualizer.animate_expert_evolution(tmp_path / "one.gif", [10, 20, 40])) as gif:
        width, height = gif.size
        shown = [np.asarray(it.convert("L"), float) for it in ImageSequence.Iterator(gif)]
    width, height = width - width % 2, height - height % 2  # which the codec wants even
    frames = np.frombuffer(raw, np.uint8).reshape(-1, height, width)
    assert len(frames) == 3
    for frame, same in zip(frames, shown, strict=True):
        assert np.abs(frame - same[:height, :width]).mean() < 3


@pytest.mark.parametrize("ends", [[3, 11], [40], [5, 6, 7, 100], None])
def test_windows_are_sums_of_their_steps(make_run_dir, ends):
    path = make_run_dir(steps=40) / ROUTING_FILE
    snapshots = list(read_routing(path))
    bounds = [0, *(ends or range(8, 41, 8))]
    windows = load_windows(path, ends, most=7)
    for window, after, last in zip(windows, bounds, bounds[1:], strict=False):
        inside = [it for it in snapshots if after < it.step <= last]
        assert window.tokens_per_expert.tolist() == sum(
            it.tokens_per_expert for it in inside
        ).tolist()  # fmt: skip
        assert (window.first_step, window.last_step) == (inside[0].step, inside[-1].step)
    assert len(windows) == len(bounds) - 1


def test_steps_before_the_first_are_refused(make_run_dir):
    path = make_run_dir(steps=5) / ROUTING_FILE
    with pytest.raises(DataError, match="has no routing snapshot up to step 0; train at least"):
        load_windows(path, [0], most=7)


def test_a_film_that_needs_what_is_not_installed_is_refused(make_run_dir, tmp_path, monkeypatch):
    visualizer = TrainingVisualizer(make_run_dir())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        BackendUnavailableError, match=r"one.mp4 needs ffmpeg.*apt-get install ffmpeg.*in .gif"
    ):
        visualizer.animate_expert_evolution(tmp_path / "one.mp4")
    with pytest.raises(DataError, match=r"a film is a .gif or an .mp4, not one.avi"):
        visualizer.animate_expert_evolution(tmp_path / "one.avi")
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"cannot write .*file: File exists; a file is where a directory"
    ):
        visualizer.animate_expert_evolution(tmp_path / "file" / "one.gif")


def test_boundaries_are_drawn_with_what_the_plane_holds(make_run_dir, tmp_path):
    model = MoEModel(num_layers=2, hidden_size=32, num_experts=4, vocab_size=64).eval()
    visualizer = TrainingVisualizer(make_run_dir())
    ids = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(0))
    picture = visualizer.plot_router_decision_boundaries(
        ids, 2, model=model, save_to=tmp_path / "plane.svg"
    )
    title = picture.figure.axes[0].get_title(loc="left")
    assert "Layer 2" in title
    assert "% of the variance" in title
    assert len(picture.figure.axes[0].collections[0].get_offsets()) == 40
    assert "<svg" in (tmp_path / "plane.svg").read_text()

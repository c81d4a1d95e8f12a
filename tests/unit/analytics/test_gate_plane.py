"""The plane through a gate's inputs: against a gate that lies in it, and against whole models."""

import numpy as np
import pytest
import torch

from moe_megatron.analytics import RouterAnalyzer
from moe_megatron.analytics.gate_plane import find_gate_plane
from moe_megatron.errors import ConfigError, DataError


def test_inputs_that_lie_in_a_plane_are_shown_whole():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(200, 2)) * (3.0, 1.0)
    base = np.linalg.qr(rng.normal(size=(16, 2)))[0]
    hidden, weight = flat @ base.T + rng.normal(size=16), rng.normal(size=(5, 16))
    plane = find_gate_plane(hidden, lambda points: points @ weight.T)
    assert sum(plane.variance) == pytest.approx(1.0)
    assert plane.variance[0] > plane.variance[1]
    assert plane.agreement == 1.0
    assert plane.first_choice.tolist() == (hidden @ weight.T).argmax(axis=1).tolist()
    # a token's cell of the grid has its choice, unless a boundary runs through the cell
    left, right, bottom, top = plane.extent
    cells = (plane.points - (left, bottom)) / (right - left, top - bottom) * 159
    columns, rows = cells.round().astype(int).T
    assert (plane.grid[rows, columns] == plane.first_choice).mean() > 0.97
    distances = np.linalg.norm(plane.points[:, None] - plane.points, axis=-1)
    assert np.allclose(distances, np.linalg.norm(flat[:, None] - flat, axis=-1))


def test_what_a_plane_cannot_show_is_counted():
    """The choice depends on a direction of little variance, which the plane leaves out."""
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(500, 8)) * ([5.0, 5.0] + [0.5] * 6)
    weight = np.zeros((2, 8))
    weight[0, 7], weight[1, 7] = 1.0, -1.0
    plane = find_gate_plane(hidden, lambda points: points @ weight.T)
    assert sum(plane.variance) == pytest.approx(50 / 51.5, abs=0.02)
    assert 0.4 < plane.agreement < 0.6


def test_tokens_without_a_plane_are_refused():
    line = np.outer(np.arange(5.0), np.ones(4))
    for hidden in (line, line[:1]):
        with pytest.raises(DataError, match=r"needs three different tokens, and . were given"):
            find_gate_plane(hidden, lambda points: points)


def test_first_choices_are_those_of_the_model(make_model, padded):
    ids, mask = padded
    analyzer = RouterAnalyzer(make_model())
    inputs = {"input_ids": ids, "attention_mask": mask}
    scores = analyzer.analyze_batch(inputs).scores
    for row, layer in enumerate(analyzer.layers):
        plane = analyzer.gate_plane(inputs, layer)
        assert plane.first_choice.tolist() == scores[row][mask.bool().numpy()].argmax(-1).tolist()
        assert plane.num_experts == 4


def test_first_choices_are_those_of_models_of_transformers(foreign, tokens):
    analyzer = RouterAnalyzer(foreign)
    mask = torch.ones_like(tokens)
    mask[0, 4:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    layer = analyzer.layers[-1]
    scores = analyzer.analyze_batch(inputs).scores[-1]
    found = analyzer.gate_plane(inputs, layer).first_choice
    assert found.tolist() == scores[mask.bool().numpy()].argmax(-1).tolist()
    with pytest.raises(ConfigError, match="layer 9 has no router; the MoE layers are"):
        analyzer.gate_plane(inputs, 9)

"""How far experts move under an adapter is what comparing with merged weights gives."""

import copy

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.adapters.merging import merge_into
from moe_megatron.adapters.movement import expert_movement
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.errors import CheckpointError
from moe_megatron.model.links import links_of


@pytest.fixture
def model() -> MoEModel:
    return MoEModel(
        hidden_size=16,
        num_layers=3,
        num_experts=4,
        experts_per_token=2,
        layer_frequency=(0, 1, 1),
        vocab_size=131,
    )


@pytest.mark.parametrize("magnitudes", [False, True])
def test_movement_is_that_of_merged_weights(model: MoEModel, draw, magnitudes: bool) -> None:
    adapter = draw(Pieces(links_of(model.architecture)), magnitudes=magnitudes)
    merged = copy.deepcopy(model)
    merge_into(merged, adapter)
    before, after = model.get_expert_weights(), merged.get_expert_weights()
    moved = expert_movement(model, adapter)
    assert list(moved) == [2, 3]
    for layer, ratios in moved.items():
        change = (after[layer] - before[layer]).flatten(1).norm(dim=1)
        torch.testing.assert_close(ratios, change / before[layer].flatten(1).norm(dim=1))
        assert (ratios > 0).all()
    only = {place: it for place, it in adapter.items() if ".local_experts.2." in place}
    assert [expert_movement(model, only)[2][expert] > 0 for expert in range(4)] == [0, 0, 1, 0]


def test_an_adapter_of_another_model_is_refused(model: MoEModel, draw) -> None:
    adapter = draw(Pieces(links_of(model.architecture)))
    other = MoEModel(hidden_size=32, num_layers=3, num_experts=4, vocab_size=131)
    with pytest.raises(CheckpointError, match="belongs to a model of other sizes"):
        expert_movement(other, adapter)

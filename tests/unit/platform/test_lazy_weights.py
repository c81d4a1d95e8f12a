"""Weights are there while their module runs, and only then."""

import pytest
import torch
from torch import nn

from moe_megatron.platform.lazy_weights import load_while_running, make_room, weights_left_out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.linear.weight.marked = True  # type: ignore[attr-defined]
        self.register_buffer("ones", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        present.append([parameter.device.type for parameter in MODEL.parameters()])
        return self.linear(x) + self.ones


present: list[list[str]] = []
MODEL: nn.Sequential


@pytest.fixture
def model() -> nn.Sequential:
    global MODEL
    present.clear()
    with weights_left_out():
        MODEL = nn.Sequential(Layer(), Layer())
    return MODEL


def filler(layer: nn.Module, value: float) -> None:
    make_room(layer)
    for parameter in layer.parameters():
        parameter.data.fill_(value)


def test_a_model_is_built_without_weights_but_with_its_buffers(model: nn.Sequential) -> None:
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} == {"cpu"}
    assert model[0].linear.weight.shape == (3, 3)
    assert model[0].linear.weight.marked
    assert nn.Linear(2, 2).weight.device.type == "cpu"  # built after it


def test_one_layer_has_its_weights_at_a_time(model: nn.Sequential) -> None:
    for number, layer in enumerate(model):
        load_while_running(layer, lambda layer=layer, value=number + 1.0: filler(layer, value))
    # Layer 1: 3 * 1 + 1 + 1 = 5; layer 2: 3 * 5 * 2 + 2 + 1 = 33.
    for _ in range(2):
        assert model(torch.ones(1, 3)).tolist() == [[33.0] * 3]
    assert present == [["cpu", "cpu", "meta", "meta"], ["meta", "meta", "cpu", "cpu"]] * 2
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model[0].linear.weight.marked


def test_a_forgotten_weight_is_named(model: nn.Sequential) -> None:
    load_while_running(model[0], lambda: None)
    with pytest.raises(AssertionError, match=r"linear\.weight, linear\.bias were not loaded"):
        model(torch.ones(1, 3))

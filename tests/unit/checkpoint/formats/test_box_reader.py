"""Boxes of saved tensors, across the chunks in which they lie."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_megatron.checkpoint.formats.box_reader import BoxReader
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.errors import MappingError

FC1 = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
NAME = "model.layers.{}.block_sparse_moe.experts.{}.w{}.weight"


@pytest.fixture
def read(imported: Path) -> Callable[..., Tensor]:
    def box(*arguments: object) -> Tensor:
        with TorchDist(imported) as saved, BoxReader(saved) as boxes:
            return boxes.read(*arguments)  # type: ignore[arg-type]

    return box


def test_a_box_across_gate_and_up_layers_and_experts_is_put_together(
    read: Callable[..., Tensor], mixtral: Path, tensors: Callable[[Path], dict[str, Tensor]]
) -> None:
    there = tensors(mixtral)
    expected = torch.stack(
        [
            torch.stack(
                [
                    torch.cat([there[NAME.format(layer, expert, w)] for w in (1, 3)])[50:60, 8:40]
                    for expert in (1, 2)
                ]
            )
            for layer in (0, 1)
        ]
    )
    assert torch.equal(read(FC1, (0, 1, 50, 8), (2, 2, 10, 32)), expected)


def test_a_box_that_is_one_chunk_is_that_chunk(
    read: Callable[..., Tensor], mixtral: Path, tensors: Callable[[Path], dict[str, Tensor]]
) -> None:
    expected = tensors(mixtral)[NAME.format(2, 3, 3)]
    assert torch.equal(read(FC1, (2, 3, 56, 0), (1, 1, 56, 48))[0, 0], expected)


def test_a_tensor_that_is_not_there_is_named(read: Callable[..., Tensor]) -> None:
    with pytest.raises(MappingError, match=r"lacks decoder\.nothing"):
        read("decoder.nothing", (0,), (1,))


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [((0, 0, 60, 0), (1, 1, 60, 48)), ((0, 0), (1, 1)), ((3, 0, 0, 0), (1,) * 4)],
)
def test_a_box_outside_of_its_tensor_is_refused(
    offsets: tuple[int, ...], sizes: tuple[int, ...], read: Callable[..., Tensor]
) -> None:
    with pytest.raises(MappingError, match=r"has the shape \[3, 4, 112, 48\]"):
        read(FC1, offsets, sizes)

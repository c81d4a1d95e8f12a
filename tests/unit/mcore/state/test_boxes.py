"""Ranges of flattened tensors as boxes, against the mask of the elements in the range."""

from itertools import product

import pytest
import torch

from moe_megatron.mcore.state.boxes import boxes_of_range

SHAPES = [(), (7,), (3, 4), (1, 5), (5, 1), (2, 3, 4), (1, 1, 3), (2, 1, 3, 2)]


def filled(part: torch.Tensor, owned: range, largest: int) -> tuple[torch.Tensor, int]:
    """How often the boxes cover each element of a tensor, and their number."""
    count = torch.zeros(part.shape, dtype=torch.int)
    boxes = list(boxes_of_range(part.shape, part.stride(), part.storage_offset(), owned, largest))
    for box in boxes:
        there = tuple(slice(at, at + n) for at, n in zip(box.corner, box.sizes, strict=True))
        count[there] += 1
        assert part[box.corner].item() == box.position
        assert count[there].numel() <= largest
    return count, len(boxes)


@pytest.mark.parametrize("largest", [1, 3, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_cover_exactly_the_range(shape: tuple[int, ...], largest: int) -> None:
    positions = torch.arange(torch.Size(shape).numel()).view(shape)
    for begin, end in product(range(positions.numel() + 1), repeat=2):
        count, _ = filled(positions, range(begin, end), largest)
        assert torch.equal(count, ((begin <= positions) & (positions < end)).int())


@pytest.mark.parametrize("shape", SHAPES)
def test_few_boxes_are_enough(shape: tuple[int, ...]) -> None:
    positions = torch.arange(torch.Size(shape).numel()).view(shape)
    for begin, end in product(range(positions.numel() + 1), repeat=2):
        _, number = filled(positions, range(begin, end), 1000)
        assert number <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_of_a_tensor_keep_their_positions(axis: int) -> None:
    whole = torch.arange(4 * 6 * 2).view(4, 6, 2)
    for part in whole.chunk(2, dim=axis):
        for begin, end in product(range(0, 49, 5), repeat=2):
            count, _ = filled(part, range(begin, end), 1000)
            assert torch.equal(count, ((begin <= part) & (part < end)).int())

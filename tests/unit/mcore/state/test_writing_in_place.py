"""Tensors that are written from where they are."""

import io

import pytest
import torch
from megatron.core.dist_checkpointing.strategies import torch as strategy

from moe_megatron.mcore.state.writing_in_place import exactly, writing_in_place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_part_of_a_storage_gets_one_of_its_own_in_the_same_memory(dtype: torch.dtype) -> None:
    whole = torch.arange(60).to(dtype).view(6, 10)
    part = exactly(whole[2:4])
    assert torch.equal(part, whole[2:4])
    assert part.data_ptr() == whole[2:4].data_ptr()
    assert part.untyped_storage().nbytes() == part.numel() * part.itemsize
    saved = io.BytesIO()
    torch.save(part, saved)
    saved.seek(0)
    assert torch.equal(torch.load(saved), whole[2:4])


def test_elements_that_are_not_together_are_copied() -> None:
    column = torch.arange(6.0).view(2, 3)[:, 1]
    copy = exactly(column)
    assert copy.tolist() == [1.0, 4.0]
    assert copy.untyped_storage().nbytes() == 8


@pytest.mark.parametrize("part", [slice(None), slice(1, 3)])
def test_what_another_process_is_handed_is_a_copy(part: slice) -> None:
    training = torch.zeros(4)
    handed = exactly(training[part]).share_memory_()
    training.fill_(1.0)
    assert not training.is_shared()
    assert handed.unique().tolist() == [0.0]


def test_planner_is_megatrons_own_again_afterwards() -> None:
    planner = strategy.MCoreSavePlanner
    with writing_in_place():
        assert strategy.MCoreSavePlanner is not planner
    assert strategy.MCoreSavePlanner is planner

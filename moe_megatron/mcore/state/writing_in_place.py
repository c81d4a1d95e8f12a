"""Writes tensors of a checkpoint from where they are in memory, without copies.

Megatron's writer clones every tensor that is a part of a larger storage, all of them before it
writes the first, because torch saves whole storages. Here each tensor gets a storage that is
exactly its part of the same memory. Where another process writes in the background, torch moves
the storages that it is handed into shared memory: of these it makes a copy, and training goes on
in the original.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import torch as strategy
from torch import Tensor


@contextmanager
def writing_in_place() -> Iterator[None]:
    """Let Megatron's checkpoint writer use the memory of the tensors, meanwhile."""
    planner: Any = strategy.MCoreSavePlanner

    class InPlacePlanner(planner):
        def resolve_data(self, write_item: Any) -> Any:
            data = super().resolve_data(write_item)
            return exactly(data.detach()) if isinstance(data, Tensor) else data

    strategy.MCoreSavePlanner = InPlacePlanner
    try:
        yield
    finally:
        strategy.MCoreSavePlanner = planner


def exactly(tensor: Tensor) -> Tensor:
    """The tensor with a storage of no other elements: in the same memory, if they are contiguous.

    Tensors that are not on the CPU are returned as they are; the writer copies them to it.
    """
    if tensor.device.type != "cpu":
        return tensor
    if not tensor.is_contiguous():
        return tensor.contiguous()
    begin = tensor.storage_offset() * tensor.itemsize
    storage = tensor.untyped_storage()[begin : begin + tensor.numel() * tensor.itemsize]
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())

"""Collectives as Megatron calls them, which assumes NCCL, on a CPU.

Each function has the signature of its namesake in `torch.distributed`. Gloo does not support
tensors as split sizes, unequal shapes in `all_gather` and `reduce_scatter`, or averages; these are
built from what it does support. Ranks of one host exchange tensors through shared memory
(shared_memory.py) where that is faster, with bitwise identical results, and add the parts of a
reduce-scatter themselves. Everything else goes to Gloo.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from moe_megatron.mcore.cpu import fast
from moe_megatron.mcore.cpu.fast.shared_memory import Channel, channel_of

Group = dist.ProcessGroup | None

_PIECE = 2**22
"""Bytes exchanged with each rank at a time; the whole tensor may be as large as the model."""


class _Done:
    """A work handle that has already completed, for callers that passed `async_op=True`."""

    def wait(self, *_: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def names() -> dict[str, Any]:
    """The functions that replace those of `torch.distributed` in Megatron's view, by name."""
    return {
        "all_reduce": all_reduce,
        "all_gather": all_gather,
        "all_gather_into_tensor": all_gather_into_tensor,
        "reduce_scatter": reduce_scatter,
        "reduce_scatter_tensor": reduce_scatter_tensor,
        "all_to_all_single": all_to_all_single,
    }


def all_reduce(
    tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, group: Group = None, async_op: bool = False
) -> Any:
    """`torch.distributed.all_reduce`, averages included.

    Two ranks add through shared memory. With more, Gloo does it, in its own order of addition.
    """
    is_average = op == dist.ReduceOp.AVG
    channel = None
    if not async_op and (is_average or op == dist.ReduceOp.SUM) and tensor.is_contiguous():
        channel = channel_of(group)
    if channel is not None and dist.get_world_size(group) == 2:
        _add_of_two(tensor, channel)
    elif is_average:
        dist.all_reduce(tensor, group=group)
    else:
        return dist.all_reduce(tensor, op=op, group=group, async_op=async_op)
    if is_average:
        tensor.div_(dist.get_world_size(group))
    return _Done() if async_op else None


def _add_of_two(tensor: torch.Tensor, channel: Channel) -> None:
    flat = tensor.detach().view(-1)
    for piece in torch.split(flat, _PIECE // tensor.element_size()):
        both = piece.new_empty(2, len(piece))
        channel.exchange([_bytes(piece)] * 2, [_bytes(row) for row in both])
        torch.add(both[0], both[1], out=piece)


def all_gather(
    tensors: list[torch.Tensor], tensor: torch.Tensor, group: Group = None, async_op: bool = False
) -> Any:
    """`torch.distributed.all_gather`, unequal shapes included (one broadcast each)."""
    if len({x.shape for x in tensors}) == 1:
        return dist.all_gather(tensors, tensor, group=group, async_op=async_op)
    own = dist.get_rank(group)
    for rank, received in enumerate(tensors):
        if rank == own:
            received.copy_(tensor)
        dist.broadcast(received, group=group, group_src=rank)
    return _Done() if async_op else None


def reduce_scatter(
    output: torch.Tensor,
    inputs: list[torch.Tensor],
    op: Any = dist.ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Any:
    """`torch.distributed.reduce_scatter`, unequal shapes included (one reduction each)."""
    if len({x.shape for x in inputs}) == 1 and op != dist.ReduceOp.AVG:
        return dist.reduce_scatter(output, inputs, op=op, group=group, async_op=async_op)
    own = dist.get_rank(group)
    average = op == dist.ReduceOp.AVG
    for rank, part in enumerate(inputs):
        summed = part.contiguous().clone()
        dist.reduce(summed, op=dist.ReduceOp.SUM if average else op, group=group, group_dst=rank)
        if rank == own:
            output.copy_(summed)
    if average:
        output.div_(dist.get_world_size(group))
    return _Done() if async_op else None


def all_gather_into_tensor(
    output: torch.Tensor, input: torch.Tensor, group: Group = None, async_op: bool = False
) -> Any:
    """`torch.distributed.all_gather_into_tensor`, without a copy to itself in a group of one."""
    if dist.get_world_size(group) == 1:
        _copy_unless_same(output, input)
        return _Done() if async_op else None
    channel = None if async_op else channel_of(group)
    if channel is None:
        return dist.all_gather_into_tensor(output, input, group=group, async_op=async_op)
    parts = _parts(output, None, dist.get_world_size(group))
    own = _bytes(input.contiguous())
    for start in range(0, len(own), _PIECE):
        piece = own[start : start + _PIECE]
        channel.exchange([piece] * len(parts), [part[start : start + _PIECE] for part in parts])
    return None


def reduce_scatter_tensor(
    output: torch.Tensor,
    input: torch.Tensor,
    op: Any = dist.ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Any:
    """`torch.distributed.reduce_scatter_tensor`, averages included.

    `output` may be a view of `input`, as in torch.
    """
    size = dist.get_world_size(group)
    is_average = op == dist.ReduceOp.AVG
    if size == 1:
        _copy_unless_same(output, input)
    elif (is_average or op == dist.ReduceOp.SUM) and fast.enabled("reduce_scatter"):
        _add_parts(output, input, group)
        if is_average:
            output.div_(size)
    else:
        if is_average:
            # Before the sum, as in NCCL: Gloo may add in the background.
            input, op = input / size, dist.ReduceOp.SUM
        return dist.reduce_scatter_tensor(output, input, op=op, group=group, async_op=async_op)
    return _Done() if async_op else None


def _add_parts(output: torch.Tensor, input: torch.Tensor, group: Group) -> None:
    """Send each rank its parts and add them there.

    Gloo adds the whole input on every rank and discards most of the sums.
    """
    parts, sums = input.contiguous().view(dist.get_world_size(group), -1), output.view(-1)
    step = _PIECE // input.element_size()
    for start in range(0, len(sums), step):
        piece = slice(start, start + step)
        received = _exchanged(parts[:, piece], group)
        torch.sum(received, dim=0, out=sums[piece])


def _exchanged(parts: torch.Tensor, group: Group) -> torch.Tensor:
    """Send row r to rank r, for every r; returns one row from each rank."""
    received = torch.empty_like(parts, memory_format=torch.contiguous_format)
    channel = channel_of(group)
    if channel is None:
        dist.all_to_all_single(received, parts.contiguous(), group=group)
    else:
        channel.exchange([_bytes(row) for row in parts], [_bytes(row) for row in received])
    return received


def _copy_unless_same(output: torch.Tensor, input: torch.Tensor) -> None:
    if output.data_ptr() != input.data_ptr():
        output.copy_(input.view_as(output))


def all_to_all_single(
    output: torch.Tensor,
    input: torch.Tensor,
    output_split_sizes: Any = None,
    input_split_sizes: Any = None,
    group: Group = None,
    async_op: bool = False,
) -> Any:
    """`torch.distributed.all_to_all_single`; split sizes may be any sequence of numbers."""
    channel = channel_of(group)
    received, sent = _int_list(output_split_sizes), _int_list(input_split_sizes)
    if channel is None:
        return dist.all_to_all_single(output, input, received, sent, group=group, async_op=async_op)
    size = dist.get_world_size(group)
    channel.exchange(_parts(input, sent, size), _parts(output, received, size))
    return _Done() if async_op else None


def _int_list(sizes: Any) -> list[int] | None:
    if isinstance(sizes, torch.Tensor):
        return sizes.tolist()
    return None if sizes is None else [int(size) for size in sizes]


def _parts(tensor: torch.Tensor, rows: list[int] | None, count: int) -> Sequence[torch.Tensor]:
    """The bytes for each rank: `rows[r]` rows of the first dimension, or equal parts if None."""
    row = tensor.element_size() * math.prod(tensor.shape[1:])
    sizes = [row * n for n in rows] if rows else [tensor.nbytes // count] * count
    return torch.split(_bytes(tensor), sizes)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(-1).view(torch.uint8)

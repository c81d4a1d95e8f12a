"""Collectives that Megatron calls with NCCL's abilities, done with what Gloo can do.

Each function has the signature of its namesake in `torch.distributed` and calls the real one
wherever Gloo serves it. Missing there: tensors as split sizes, unequal shapes in `all_gather` and
`reduce_scatter`, and averages.
"""

from typing import Any

import torch
import torch.distributed as dist

Group = dist.ProcessGroup | None


class _Done:
    """A finished piece of work, for callers that asked for an asynchronous one."""

    def wait(self, *_: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def names() -> dict[str, Any]:
    """The names of `torch.distributed` that Megatron sees differently."""
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
    """`torch.distributed.all_reduce`, averages included."""
    if op != dist.ReduceOp.AVG:
        return dist.all_reduce(tensor, op=op, group=group, async_op=async_op)
    dist.all_reduce(tensor, group=group)
    tensor.div_(dist.get_world_size(group))
    return _Done() if async_op else None


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
    if dist.get_world_size(group) > 1:
        return dist.all_gather_into_tensor(output, input, group=group, async_op=async_op)
    _copy_unless_same(output, input)
    return _Done() if async_op else None


def reduce_scatter_tensor(
    output: torch.Tensor,
    input: torch.Tensor,
    op: Any = dist.ReduceOp.SUM,
    group: Group = None,
    async_op: bool = False,
) -> Any:
    """`torch.distributed.reduce_scatter_tensor`, averages included.

    Gloo reduces everything everywhere and throws most of it away; for sums it is quicker to send
    each rank its parts and add them there. `output` may be a part of `input`, as torch allows.
    """
    size = dist.get_world_size(group)
    if size == 1:
        _copy_unless_same(output, input)
    elif op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
        parts = torch.empty_like(input, memory_format=torch.contiguous_format)
        dist.all_to_all_single(parts, input.contiguous(), group=group)
        torch.sum(parts.view(size, *output.shape), dim=0, out=output)
        if op == dist.ReduceOp.AVG:
            output.div_(size)
    else:
        return dist.reduce_scatter_tensor(output, input, op=op, group=group, async_op=async_op)
    return _Done() if async_op else None


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
    """`torch.distributed.all_to_all_single` with split sizes as any sequence of numbers."""
    return dist.all_to_all_single(
        output,
        input,
        _int_list(output_split_sizes),
        _int_list(input_split_sizes),
        group=group,
        async_op=async_op,
    )


def _int_list(sizes: Any) -> list[int] | None:
    return None if sizes is None else [int(size) for size in sizes]

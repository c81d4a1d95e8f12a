"""All-to-all between the processes of an expert parallel group, with gradients.

Every process of the group must make the same calls in the same order. Nothing here knows experts.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def exchange_counts(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Tell every process how many rows it will receive.

    Args:
        counts: int64 [processes, n]; row p is for process p.
        group: The processes.

    Returns:
        int64 [processes, n]; row p came from process p.
    """
    received = torch.empty_like(counts)
    dist.all_to_all_single(received, counts.contiguous(), group=group)
    return received


def exchange_rows(
    rows: Tensor, send_sizes: list[int], receive_sizes: list[int], group: dist.ProcessGroup
) -> Tensor:
    """Send consecutive blocks of rows to the processes; gradients take the same way back.

    Args:
        rows: [sum(send_sizes), width], the block for process 0 first.
        send_sizes: Number of rows for each process.
        receive_sizes: Number of rows from each process.
        group: The processes.

    Returns:
        [sum(receive_sizes), width], the block from process 0 first.
    """
    received: Tensor = _ExchangeRows.apply(rows, send_sizes, receive_sizes, group)
    return received


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        send_sizes: list[int],
        receive_sizes: list[int],
        group: dist.ProcessGroup,
    ) -> Tensor:
        ctx.route = (receive_sizes, send_sizes, group)
        return _all_to_all(rows, send_sizes, receive_sizes, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], *ctx.route), None, None, None


def _all_to_all(
    rows: Tensor, send_sizes: list[int], receive_sizes: list[int], group: dist.ProcessGroup
) -> Tensor:
    received = rows.new_empty(sum(receive_sizes), rows.shape[1])
    dist.all_to_all_single(received, rows.contiguous(), receive_sizes, send_sizes, group=group)
    return received

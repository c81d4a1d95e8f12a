"""Exact routing counters of one training step, kept on the device.

A router adds into its row of these tensors, in place (so CUDA graphs replay it) and without a host
synchronisation. Once a step `collect` starts one reduction over all ranks; every rank contributes
tensors of the same shape in the same order, rows of layers it does not own being zero, so uneven
pipelines cannot hang. Counts are int64: Megatron's own float counters are rounded to bf16 by its
mixed-precision wrapper. This module does not know routers, sinks or files.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

_NUM_SUMS = 2
"""Columns of float sums behind those of the experts: entropy and squared logsumexp. The last row
holds no layer but the loss and the number of ranks that know it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingRow:
    """The counters of one layer: views into the rows of `RoutingCounters`."""

    tokens_per_expert: torch.Tensor
    """int64 [E]: assignments that reached each expert."""
    tokens: torch.Tensor
    """int64 []: tokens that were routed."""
    prob_sums: torch.Tensor
    """float64 [E]: router probability of each expert, summed over tokens."""
    sums: torch.Tensor
    """float64 [2]: entropy and squared logsumexp of the logits, summed over tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTotals:
    """Sums over the global batch, for every MoE layer of the model, on the host."""

    tokens_per_expert: Int64Array
    """[L, E]"""
    tokens: Int64Array
    """[L]"""
    prob_sums: Float64Array
    """[L, E]"""
    entropy_sums: Float64Array
    """[L], nats"""
    z_sums: Float64Array
    """[L]"""
    loss: float | None
    """Loss of the global batch in nats per token; None where no rank reported one."""


class PendingTotals:
    """A reduction under way, and its copy to the host."""

    def __init__(self, counts: torch.Tensor, sums: torch.Tensor, num_experts: int) -> None:
        self._num_experts = num_experts
        self._work = []
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._work = [dist.all_reduce(tensor, async_op=True) for tensor in (counts, sums)]
        self._copied: torch.cuda.Event | None = None
        self._host = (counts, sums)
        if counts.is_cuda:
            # Waiting for NCCL makes only the stream wait; the copy to pinned memory follows it.
            for work in self._work:
                work.wait()
            self._work = []
            self._host = tuple(  # type: ignore[assignment]
                torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(
                    tensor, non_blocking=True
                )
                for tensor in (counts, sums)
            )
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def get(self) -> StepTotals:
        """The totals. Asked a step later, nothing waits: they have long arrived."""
        for work in self._work:
            work.wait()
        if self._copied is not None:
            self._copied.synchronize()
        counts, sums = (tensor.numpy() for tensor in self._host)
        experts = self._num_experts
        loss_sum, num_reports = sums[-1, -_NUM_SUMS:]
        return StepTotals(
            tokens_per_expert=counts[:, :experts],
            tokens=counts[:, experts],
            prob_sums=sums[:-1, :experts],
            entropy_sums=sums[:-1, experts],
            z_sums=sums[:-1, experts + 1],
            loss=float(loss_sum / num_reports) if num_reports else None,
        )


class RoutingCounters:
    """The counters of all MoE layers of the model, also of those on other pipeline stages."""

    def __init__(self, layers: tuple[int, ...], num_experts: int, device: torch.device) -> None:
        """Allocate zeroed counters.

        Args:
            layers: Global 1-based numbers of the model's MoE layers, in order; empty for a dense
                model, for which only the loss is reduced.
            num_experts: Experts in each of them.
            device: Where the routers run.
        """
        self.layers = layers
        self.num_experts = num_experts
        self._counts = torch.zeros(len(layers), num_experts + 1, dtype=torch.int64, device=device)
        self._sums = torch.zeros(
            len(layers) + 1, num_experts + _NUM_SUMS, dtype=torch.float64, device=device
        )

    def row(self, layer: int) -> RoutingRow:
        """The row of the layer with this global 1-based number."""
        index, experts = self.layers.index(layer), self.num_experts
        return RoutingRow(
            tokens_per_expert=self._counts[index, :experts],
            tokens=self._counts[index, experts],
            prob_sums=self._sums[index, :experts],
            sums=self._sums[index, experts:],
        )

    def collect(self, *, contributes: bool, loss: torch.Tensor | None) -> PendingTotals:
        """Start the reduction of this step's counters and reset them; every rank must call it.

        Args:
            contributes: False on ranks that saw the same tokens as another one (tensor parallel
                ranks without sequence parallelism), so that no token counts twice.
            loss: Loss of the global batch on ranks that know it, the same on each of them.
        """
        counts, sums = self._counts.clone(), self._sums.clone()
        self._counts.zero_()
        self._sums.zero_()
        if not contributes:
            counts.zero_()
            sums.zero_()
        if loss is not None:
            sums[-1, -_NUM_SUMS] = loss.detach().reshape(())
            sums[-1, -1] = 1.0
        return PendingTotals(counts, sums, self.num_experts)

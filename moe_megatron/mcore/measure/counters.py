"""Exact routing counters of one training step, kept on the device.

A router adds into its row of these tensors, in place (so CUDA graphs replay it) and without a host
synchronisation. Once a step `collect` starts one reduction over all ranks; every rank contributes
tensors of the same shape in the same order, rows of layers it does not own being zero, so uneven
pipelines cannot hang. Counts are int64: Megatron's own float counters are rounded to bf16 by its
mixed-precision wrapper. What each rank measured of itself travels along. This module does not know
routers, sinks or files.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from moe_megatron.mcore.measure.rank_load import RankValues

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
    rank_compute_seconds: Float64Array = field(default_factory=lambda: np.zeros(1))
    """[W], see `rank_load`; zeros where nothing was measured"""
    rank_memory_bytes: Float64Array = field(default_factory=lambda: np.zeros(1))
    """[W]"""


class PendingTotals:
    """A reduction under way, and its copy to the host."""

    def __init__(self, counts: torch.Tensor, sums: torch.Tensor, num_experts: int) -> None:
        self._num_experts = num_experts
        self._num_rows = len(counts) + 1
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
        counts, flat = (tensor.numpy() for tensor in self._host)
        experts = self._num_experts
        size = self._num_rows * (experts + _NUM_SUMS)
        sums, ranks = flat[:size].reshape(self._num_rows, -1), flat[size:].reshape(2, -1)
        loss_sum, num_reports = sums[-1, -_NUM_SUMS:]
        return StepTotals(
            tokens_per_expert=counts[:, :experts],
            tokens=counts[:, experts],
            prob_sums=sums[:-1, :experts],
            entropy_sums=sums[:-1, experts],
            z_sums=sums[:-1, experts + 1],
            loss=float(loss_sum / num_reports) if num_reports else None,
            rank_compute_seconds=ranks[0],
            rank_memory_bytes=ranks[1],
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

    def collect(
        self, *, contributes: bool, loss: torch.Tensor | None, own: RankValues | None = None
    ) -> PendingTotals:
        """Start the reduction of this step's counters and reset them; every rank must call it.

        Args:
            contributes: False on ranks that saw the same tokens as another one (tensor parallel
                ranks without sequence parallelism), so that no token counts twice.
            loss: Loss of the global batch on ranks that know it, the same on each of them.
            own: What this rank did; None reports zeros.
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
        return PendingTotals(counts, self._with_ranks(sums, own), self.num_experts)

    def _with_ranks(self, sums: torch.Tensor, own: RankValues | None) -> torch.Tensor:
        """The sums, flat, and behind them a slot of each rank for each of its values.

        Adding up zeros brings every rank's values to all of them, by the reduction that is made
        anyway.
        """
        world = dist.get_world_size() if dist.is_initialized() else 1
        ranks = torch.zeros(2, world, dtype=torch.float64, device=sums.device)
        if own is not None:
            rank = dist.get_rank() if dist.is_initialized() else 0
            # Filling with a number is one small kernel; no memory is copied from the host.
            ranks[0, rank].fill_(own.compute_seconds)
            ranks[1, rank].fill_(own.memory_bytes)
        return torch.cat((sums.flatten(), ranks.flatten()))

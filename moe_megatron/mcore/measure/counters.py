"""Exact routing counters of one training step, kept on the device.

A router adds into its row of these tensors, in place (so CUDA graphs replay it) and without a host
synchronisation. Once per step `collect` starts one reduction over all ranks. Every rank contributes
tensors of the same shape in the same order, with zeros in the rows of layers it does not own, so
uneven pipelines cannot hang. Counts are int64: Megatron's own float counters are rounded to bf16 by
its mixed-precision wrapper. The same reduction carries each rank's time and memory, and which of
its logs cannot be written. The catalog defines the quantities: this module knows neither them nor
routers or files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.measure.rank_load import RankValues
from moe_megatron.mcore.measure.reduction import Reduction
from moe_megatron.telemetry.catalog import quantities as registered_quantities
from moe_megatron.telemetry.metric import SINKS
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.sinks.health import SinkState

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

# Columns of the counts, after one per expert.
_TOKENS, _BEYOND = 0, 1
_NUM_COUNTS = 2

# Columns of the sums: one per expert, then one per measured quantity. The last row is not a layer:
# its last two columns hold the sum of the reported losses and the number of ranks reporting one.
_NUM_LOSS = 2

# Of each rank: its time, its memory and the peak of that.
_NUM_RANK_VALUES = 3

# For each sink: on how many ranks it is broken, how often it was, and the records that it has lost.
_NUM_SINK_SLOTS = 3 * len(SINKS)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingRow:
    """The counters of one layer, as views into the tensors of `RoutingCounters`."""

    tokens_per_expert: torch.Tensor
    """int64 [E]: assignments that reached each expert."""
    tokens: torch.Tensor
    """int64 []: tokens that were routed."""
    beyond_top_k: torch.Tensor
    """int64 []: assignments requested by the router - tokens * top_k. It stays zero, at no cost,
    for routers that request top_k experts for every token."""
    prob_sums: torch.Tensor
    """float64 [E]: router probability of each expert, summed over tokens."""
    sums: tuple[torch.Tensor, ...]
    """float64 [] each: the quantities below, summed over tokens."""
    quantities: tuple[Quantity, ...]
    """The measured quantities, in the order of `sums`."""
    by_task: torch.Tensor | None = None
    """int64 [tasks, E]: `tokens_per_expert` by the task of the token; None without tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTotals:
    """Sums over the global batch, for every MoE layer of the model, on the host."""

    tokens_per_expert: Int64Array
    """[L, E]"""
    tokens: Int64Array
    """[L]"""
    beyond_top_k: Int64Array
    """[L], see `RoutingRow`"""
    prob_sums: Float64Array
    """[L, E]"""
    sums: Mapping[str, Float64Array]
    """[L] each: the measured quantities, by name"""
    loss: float | None
    """Loss of the global batch in nats per token; None where no rank reported one."""
    rank_compute_seconds: Float64Array = field(default_factory=lambda: np.zeros(1))
    """[W], one value per rank, see `rank_load`; zeros where nothing was measured"""
    rank_memory_bytes: Float64Array = field(default_factory=lambda: np.zeros(1))
    """[W]"""
    rank_peak_bytes: Float64Array = field(default_factory=lambda: np.zeros(1))
    """[W]"""
    other_sinks: Mapping[str, SinkState] = field(default_factory=dict)
    """The logs and sinks of all ranks but the first that were ever broken, by name"""
    by_task: Int64Array | None = None
    """[tasks, L, E]; None without tasks"""
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the loss function reported besides the loss, by name"""


class PendingTotals:
    """A reduction in progress, and its copy to the host."""

    def __init__(
        self,
        counts: torch.Tensor,
        sums: torch.Tensor,
        num_experts: int,
        names: Sequence[str],
        measures: Sequence[str] = (),
    ) -> None:
        self._num_experts = num_experts
        self._names, self._measures = names, measures
        self._num_rows = len(counts) + 1
        self._sums = Reduction(counts, sums)

    def get(self) -> StepTotals:
        """The totals. One step later they have long arrived, so that nothing waits."""
        counts, flat = self._sums.get()
        experts = self._num_experts
        size = self._num_rows * (experts + _num_sums(self._names))
        sums, rest = flat[:size].reshape(self._num_rows, -1), flat[size:]
        measured, rest = rest[: len(self._measures)], rest[len(self._measures) :]
        ranks, sinks = (
            rest[:-_NUM_SINK_SLOTS].reshape(_NUM_RANK_VALUES, -1),
            rest[-_NUM_SINK_SLOTS:],
        )
        loss_sum, num_reports = sums[-1, -_NUM_LOSS:]
        return StepTotals(
            tokens_per_expert=counts[:, :experts],
            by_task=_by_task(counts[:, experts + _NUM_COUNTS :], experts),
            tokens=counts[:, experts + _TOKENS],
            beyond_top_k=counts[:, experts + _BEYOND],
            prob_sums=sums[:-1, :experts],
            sums={name: sums[:-1, experts + place] for place, name in enumerate(self._names)},
            loss=float(loss_sum / num_reports) if num_reports else None,
            rank_compute_seconds=ranks[0],
            rank_memory_bytes=ranks[1],
            rank_peak_bytes=ranks[2],
            other_sinks=_sinks_of(sinks.reshape(len(SINKS), -1)),
            measures={
                name: float(value / num_reports)
                for name, value in zip(self._measures, measured, strict=True)
                if num_reports
            },
        )


class RoutingCounters:
    """The counters of all MoE layers of the model, including those on other pipeline stages.

    Args:
        layers: Global 1-based numbers of the model's MoE layers, in order; empty for a dense
            model, for which only the loss is reduced.
        num_experts: Number of experts per layer.
        device: Device on which the routers run.
        quantities: What to measure in addition to counts; by default all registered quantities.
        num_tasks: For how many tasks to count by themselves, too.
        measures: Names of what the loss function reports besides the loss.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        num_experts: int,
        device: torch.device,
        quantities: Sequence[Quantity] | None = None,
        num_tasks: int = 0,
        *,
        measures: tuple[str, ...] = (),
    ) -> None:
        self._measures = measures
        chosen = registered_quantities() if quantities is None else quantities
        self.layers = layers
        self.num_experts = num_experts
        self._measured = tuple(quantity for quantity in chosen if quantity.measure is not None)
        self._names = [quantity.name for quantity in self._measured]
        self._num_tasks = num_tasks
        rows, columns = len(layers), num_experts + _NUM_COUNTS + num_tasks * num_experts
        self._counts = torch.zeros(rows, columns, dtype=torch.int64, device=device)
        columns = num_experts + _num_sums(self._names)
        self._sums = torch.zeros(rows + 1, columns, dtype=torch.float64, device=device)

    def row(self, layer: int) -> RoutingRow:
        """The row of the layer with this global 1-based number."""
        index, experts = self.layers.index(layer), self.num_experts
        return RoutingRow(
            tokens_per_expert=self._counts[index, :experts],
            tokens=self._counts[index, experts + _TOKENS],
            beyond_top_k=self._counts[index, experts + _BEYOND],
            prob_sums=self._sums[index, :experts],
            sums=self._sums[index, experts : experts + len(self._names)].unbind(),
            quantities=self._measured,
            by_task=self._counts[index, experts + _NUM_COUNTS :].view(self._num_tasks, experts)
            if self._num_tasks
            else None,
        )

    def check_same_on_all_ranks(self) -> None:
        """Check that all ranks sum the same quantities; every rank must call it once.

        Otherwise their reductions would have different shapes, and the run would hang.

        Raises:
            ConfigError: The ranks sum different quantities.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        digest = hashlib.sha256(" ".join(self._names).encode()).digest()
        mine = torch.tensor(list(digest[:4]), dtype=torch.int64, device=self._counts.device)
        extremes = torch.cat((mine, -mine))
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        if not torch.equal(extremes[:4], -extremes[4:]):
            raise ConfigError(
                "the processes of this run measure different quantities; this one measures "
                f"{', '.join(self._names)}. Register the same ones in the same order in each "
                "process before training starts."
            )

    def discard(self) -> None:
        """Forget what was counted since the last reduction."""
        self._counts.zero_()
        self._sums.zero_()

    def collect(
        self,
        *,
        contributes: bool,
        loss: torch.Tensor | None,
        measured: Mapping[str, torch.Tensor] | None = None,
        own: RankValues | None = None,
    ) -> PendingTotals:
        """Start the reduction of this step's counters and reset them; every rank must call it.

        Args:
            contributes: False on ranks that saw the same tokens as another one (tensor parallel
                ranks without sequence parallelism), so that no token is counted twice.
            loss: Loss of the global batch on ranks that know it, the same on each of them; None
                on the others.
            measured: What else the loss function reports, on the same ranks.
            own: Time and memory of this rank; None reports zeros.
        """
        counts, sums = self._counts.clone(), self._sums.clone()
        self.discard()
        if not contributes:
            counts.zero_()
            sums.zero_()
        extra = torch.zeros(len(self._measures), dtype=torch.float64, device=sums.device)
        if loss is not None:
            sums[-1, -_NUM_LOSS] = loss.detach().reshape(())
            sums[-1, -1] = 1.0
            for place, name in enumerate(self._measures):
                extra[place] = (measured or {})[name].detach().reshape(())
        flat = self._with_ranks(sums, extra, own)
        return PendingTotals(counts, flat, self.num_experts, self._names, self._measures)

    def _with_ranks(
        self, sums: torch.Tensor, extra: torch.Tensor, own: RankValues | None
    ) -> torch.Tensor:
        """The flattened sums, what else was measured, slots for each rank's time and memory, sinks.

        A rank fills only its own slots and leaves zeros in the others, so the sum over ranks brings
        every rank's values to all of them without a second reduction.
        """
        world = dist.get_world_size() if dist.is_initialized() else 1
        ranks = torch.zeros(_NUM_RANK_VALUES, world, dtype=torch.float64, device=sums.device)
        sinks = torch.zeros(_NUM_SINK_SLOTS, dtype=torch.float64, device=sums.device)
        if own is not None:
            rank = dist.get_rank() if dist.is_initialized() else 0
            # fill_ with a number is one small kernel; nothing is copied from the host.
            ranks[0, rank].fill_(own.compute_seconds)
            ranks[1, rank].fill_(own.memory_bytes)
            ranks[2, rank].fill_(own.peak_bytes)
            if rank:  # the exporter, on the first rank, knows that rank's
                _add_sinks(sinks, own.sinks)
        return torch.cat((sums.flatten(), extra, ranks.flatten(), sinks))


def _by_task(counts: Int64Array, num_experts: int) -> Int64Array | None:
    """[L, tasks * E] to [tasks, L, E]."""
    if not counts.size:
        return None
    return counts.reshape(len(counts), -1, num_experts).transpose(1, 0, 2)


def _add_sinks(slots: torch.Tensor, states: Mapping[str, SinkState]) -> None:
    """Add the state of one rank's sinks; nothing is written while all of them work."""
    for name, state in states.items():
        first = 3 * SINKS.index(name if name in SINKS else "other")
        for place, value in enumerate((state.broken, state.outages, state.dropped)):
            if value:
                slots[first + place].add_(float(value))


def _sinks_of(slots: Float64Array) -> dict[str, SinkState]:
    return {
        name: SinkState(broken=bool(broken), outages=int(outages), dropped=int(dropped))
        for name, (broken, outages, dropped) in zip(SINKS, slots.tolist(), strict=True)
        if outages or dropped
    }


def _num_sums(names: Sequence[str]) -> int:
    """Number of columns of the sums after one per expert."""
    return max(len(names), _NUM_LOSS)

"""The compute time and the memory of this process, to find stragglers.

All processes end a step together, so step times do not show who was slow. The forward passes of
attention and experts do, because they do not communicate. Each such module is timed once per step,
in its first training forward pass, with the host's clock on a CPU and with device events on a GPU.
Events are read one step later, when they have long completed, so that nothing waits.

It does not know how the values reach rank 0: `counters` sends them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from megatron.core.transformer.moe.moe_layer import MoELayer
from numpy.typing import NDArray

from moe_megatron.mcore.measure.peak_memory import PeakMemory
from moe_megatron.telemetry.sinks.health import SinkState


@dataclass(frozen=True, kw_only=True, slots=True)
class RankValues:
    """Measurements of this process in one step."""

    compute_seconds: float
    """0.0 where nothing was measured."""
    memory_bytes: float
    """At the end of the step."""
    peak_bytes: float = 0.0
    """The most at once since the end of the step before; 0.0 where it is not known."""
    sinks: Mapping[str, SinkState] = field(default_factory=dict)
    """Its logs and sinks that were ever broken, by the names of `metric.SINKS`."""


class ComputeTimer:
    """Times the modules of this process that compute without communicating.

    Args:
        model: Model chunks.
    """

    def __init__(self, model: list[Any]) -> None:
        self._on_gpu = next(model[0].parameters()).is_cuda
        self._watches = [_Watch(module, self._on_gpu) for module in _local_modules(model)]
        self._process = psutil.Process()
        self._peak = PeakMemory(on_gpu=self._on_gpu)
        self._last: list[_Span] = []

    def take(self) -> RankValues:
        """The values of the step that ends; on a GPU the time is that of the previous step."""
        spans = [span for watch in self._watches if (span := watch.take()) is not None]
        if self._on_gpu:
            spans, self._last = self._last, spans
        return RankValues(
            compute_seconds=sum(span.seconds() for span in spans),
            memory_bytes=self._memory(),
            peak_bytes=self._peak.take(),
        )

    def remove(self) -> None:
        """Remove the hooks from the model."""
        self._peak.close()
        for watch in self._watches:
            watch.remove()
        self._watches, self._last = [], []

    def _memory(self) -> float:
        # Neither synchronizes with the device: the allocator keeps its own statistics.
        if self._on_gpu:
            return float(torch.cuda.memory_allocated())
        return float(self._process.memory_info().rss)


def by_expert_rank(seconds: NDArray[np.float64], ranks: NDArray[np.int64]) -> tuple[float, ...]:
    """Mean time of the processes of each expert parallel rank, in microseconds' precision.

    Args:
        seconds: float64 [W], time of each process; 0.0 where nothing was measured.
        ranks: int64 [W], its expert parallel rank.

    Returns:
        A time for each rank; () for a single one, or where one has no measurement.
    """
    measured = seconds > 0
    number = np.bincount(ranks, measured)
    if len(number) == 1 or not number.all():
        return ()
    means = np.bincount(ranks, seconds) / number
    return tuple(round(it, 6) for it in means.tolist())


@dataclass(frozen=True, slots=True)
class _Span:
    """A time span between two marks: seconds of the host, or events of the device."""

    start: Any
    end: Any

    def seconds(self) -> float:
        if isinstance(self.start, float):
            return float(self.end - self.start)
        if not self.end.query():  # more than one step behind: skip the value, do not wait
            return 0.0
        return float(self.start.elapsed_time(self.end)) / 1e3


class _Watch:
    """Times the first training forward pass of one module in each step."""

    def __init__(self, module: torch.nn.Module, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._start: Any = None
        self._span: _Span | None = None
        self._handles = [
            module.register_forward_pre_hook(self._before),
            module.register_forward_hook(self._after),
        ]

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _before(self, module: torch.nn.Module, inputs: Any) -> None:
        if module.training and self._span is None:
            self._start = self._mark()

    def _after(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if module.training and self._span is None and self._start is not None:
            self._span = _Span(self._start, self._mark())

    def take(self) -> _Span | None:
        span, self._span, self._start = self._span, None, None
        return span

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _local_modules(model: list[Any]) -> list[torch.nn.Module]:
    found = []
    for chunk in model:
        for name, module in chunk.named_modules():
            if name.rpartition(".")[2] == "core_attention":
                found.append(module)
            elif isinstance(module, MoELayer) and isinstance(module.experts, torch.nn.Module):
                found.append(module.experts)
    return found

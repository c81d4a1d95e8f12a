"""What one sink gets: records in order, also those that it could not take at first.

A sink that raises is told to the sinks' health and gets nothing for a while, then the same record
again if the operating system refused it (a full disk may have room again), or the next one if the
record or the sink itself is at fault. Meanwhile records wait, up to a bound; further ones are
dropped and counted. It does not know threads: all calls of a sink come from one.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from moe_megatron.telemetry.sinks.backoff import Backoff
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.routing_sample import RoutingSample
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

WAITING_RECORDS = 256
"""Records that wait for a sink that fails; they are shared by all sinks that do."""


class Sink(Protocol):
    """Receives the records of one run, in order, all calls on one thread.

    A method that raises OSError is called again later with the same record, so it should raise
    before it has changed anything. A record for which it raises something else is left out.
    """

    def start(self, run: RunInfo) -> None:
        """Called before the first record; again if it raised."""

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Called for each step; `routing` is None when the step measured none."""

    def evaluation(self, record: EvalRecord) -> None:
        """Called for each evaluation."""

    def close(self) -> None:
        """Called once, at the end of the run."""


@runtime_checkable
class BufferingSink(Protocol):
    """A sink that keeps records in memory until they are flushed."""

    def flush(self) -> None:
        """Writes every record so far and returns when it is done. Called before checkpoints."""


@runtime_checkable
class RewindingSink(Protocol):
    """A sink that must not get a step twice."""

    def rewind(self, run: RunInfo) -> None:
        """Forgets the steps after `run.start_step`, which are made again."""


@runtime_checkable
class SamplingSink(Protocol):
    """A sink that keeps samples of what experts do together."""

    def sample(self, sample: RoutingSample) -> None:
        """Called for each sample, after its step."""


@runtime_checkable
class _NamedSink(Protocol):
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call of every sink."""

    of: Callable[[Sink], None]
    needed: bool = False
    """Whether no later call makes sense before it has worked."""


class Delivery:
    """The way to one sink.

    Args:
        sink: The sink; its attribute `name`, if it has one, names it in messages and metrics.
        health: Is told of failures.
    """

    def __init__(self, sink: Sink, health: SinkHealth) -> None:
        self.name = sink.name if isinstance(sink, _NamedSink) else type(sink).__name__
        self._sink = sink
        self._health = health
        self._backoff = Backoff()
        self._broken = False
        self._waiting: deque[Call] = deque()

    def deliver(self, call: Call) -> None:
        """Make a call, or keep it for later."""
        if len(self._waiting) >= WAITING_RECORDS:
            self._health.dropped(self.name)
        else:
            self._waiting.append(call)
        if not self._backoff.waiting:
            self._try_waiting()

    def flush(self) -> None:
        """Make the calls that wait now, and have the sink write what it keeps in memory."""
        if self._try_waiting() and isinstance(self._sink, BufferingSink):
            self._attempt(self._sink.flush)

    def close(self) -> None:
        """Make the calls that wait for a last time, and close the sink."""
        while self._waiting and self._try_waiting(patient=False):
            pass
        self._health.dropped(self.name, sum(not call.needed for call in self._waiting))
        self._waiting.clear()
        try:
            self._sink.close()
        except BaseException as error:
            self._health.failed(self.name, _reason(error))

    def _try_waiting(self, *, patient: bool = True) -> bool:
        """Make the waiting calls until one fails; returns whether there is any use in going on."""
        while self._waiting:
            call = self._waiting[0]
            error = self._attempt(lambda call=call: call.of(self._sink))  # type: ignore[misc]
            if error is not None and (isinstance(error, OSError) or call.needed):
                return False
            self._waiting.popleft()
            if error is not None:
                self._health.dropped(self.name)
                return not patient
        return True

    def _attempt(self, action: Callable[[], None]) -> BaseException | None:
        try:
            action()
        except BaseException as error:  # even SystemExit: it would end the thread for all sinks
            self._backoff.failed()
            self._broken = True
            self._health.failed(self.name, _reason(error))
            return error
        if self._broken:  # asked here, since another sink may have the same name
            self._broken = False
            self._backoff.worked()
            self._health.restored(self.name)
        return None


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"

"""Delivery of step records to sinks, without ever disturbing the training loop.

The training thread only puts a record on a queue. One background thread passes it to each sink in
turn, so sinks need no locks. Failures are contained here:

- A sink that raises gets its records later: `delivery` keeps some and tries again. The others
  continue.
- When sinks are slower than training and the queue is full, step records are dropped, counted and
  reported once. Evaluations are few and never dropped.
- `close` delivers everything queued. Ctrl-C during `close` abandons the rest of the queue.
- A killed process (SIGKILL, out of memory) loses the queue, usually less than a step. Call `flush`
  before saving a checkpoint, so that the records never end before the step to resume at.

It does not know what sinks do with records.
"""

import atexit
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial

from moe_megatron.telemetry.sinks.delivery import Call, Delivery, RewindingSink, SamplingSink, Sink
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.routing_sample import RoutingSample
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

logger = logging.getLogger(__name__)


def _rewind(run: RunInfo, sink: Sink) -> None:
    if isinstance(sink, RewindingSink):
        sink.rewind(run)


def _sample(sample: RoutingSample, sink: Sink) -> None:
    if isinstance(sink, SamplingSink):
        sink.sample(sample)


class SinkSet:
    """Many sinks as one, behind a bounded queue and a background thread.

    No method raises because of a sink. `step` and `evaluation` take microseconds.

    Args:
        sinks: the sinks, which receive records in this order.
        health: is told which sinks fail.
        queue_size: largest number of step records that wait. One of a large model (61 layers, 256
            experts) has 125 KB, so the default bounds the queue at 32 MB.
    """

    def __init__(
        self, sinks: Sequence[Sink], queue_size: int = 256, health: SinkHealth | None = None
    ) -> None:
        health = health or SinkHealth()
        self._deliveries = [Delivery(sink, health) for sink in sinks]
        self._queue_size = queue_size
        # Unbounded on purpose: the bound is checked only for step records, so that evaluations and
        # the end mark always fit. Its `put` is atomic even when Ctrl-C interrupts it.
        self._queue: queue.SimpleQueue[Call | threading.Event | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy_sink = "none"
        self._dropped = 0
        self._closed = False

    @property
    def dropped_records(self) -> int:
        """Step records that no sink received because the queue was full."""
        return self._dropped

    def start(self, run: RunInfo) -> None:
        """Starts the background thread and passes the run to the sinks."""
        if self._thread is not None or self._closed:
            return
        self._queue.put(Call(lambda sink: sink.start(run), needed=True))
        # A daemon, so that a hanging sink cannot keep the process alive; `atexit` covers callers
        # that never reach `close`.
        self._thread = threading.Thread(target=self._deliver, name="telemetry", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Queues one step, or drops it if `queue_size` records are already waiting."""
        if self._closed:
            return
        if self._queue.qsize() >= self._queue_size:
            self._dropped += 1
            if self._dropped == 1:
                logger.warning(
                    "telemetry falls behind training: %d records wait (sink %s is busy); dropping "
                    "step %d and later steps while the queue is full; remove or speed up that sink",
                    self._queue_size,
                    self._busy_sink,
                    record.step,
                )
            return
        self._queue.put(Call(lambda sink: sink.step(record, routing)))

    def rewind(self, run: RunInfo) -> None:
        """Tells the sinks that keep each step once that steps are made again."""
        if not self._closed:
            self._queue.put(Call(partial(_rewind, run), needed=True))

    def evaluation(self, record: EvalRecord) -> None:
        """Queues one evaluation."""
        if not self._closed:
            self._queue.put(Call(lambda sink: sink.evaluation(record)))

    def sample(self, sample: RoutingSample) -> None:
        """Queues one sample, for the sinks that keep any; they are few and never dropped."""
        if not self._closed:
            self._queue.put(Call(partial(_sample, sample)))

    def flush(self, timeout: float = 10.0) -> bool:
        """Waits until the sinks have received and written everything queued so far.

        Args:
            timeout: longest time to wait, in seconds.

        Returns:
            Whether they finished in time.
        """
        if self._thread is None or not self._thread.is_alive():
            return self._queue.empty()
        delivered = threading.Event()
        self._queue.put(delivered)
        return delivered.wait(timeout)

    def close(self, timeout: float = 60.0) -> None:
        """Delivers what is queued and closes the sinks. Calling it again does nothing.

        Args:
            timeout: seconds to wait for slow sinks; after that their records are lost.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._dropped:
            logger.warning("telemetry dropped %d step records of this run", self._dropped)
        if self._thread is None:
            return
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning(
                "telemetry did not finish within %.0f s (sink %s is busy); about %d queued "
                "records are lost",
                timeout,
                self._busy_sink,
                self._queue.qsize(),
            )

    def _deliver(self) -> None:
        """The background thread: one queued item after the other, each to every sink."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                self._of_all(lambda delivery: delivery.flush())
                item.set()
            else:
                self._of_all(partial(_deliver, item))
        self._of_all(lambda delivery: delivery.close())

    def _of_all(self, work: Callable[[Delivery], None]) -> None:
        for delivery in self._deliveries:
            self._busy_sink = delivery.name
            work(delivery)
        self._busy_sink = "none"


def _deliver(call: Call, delivery: Delivery) -> None:
    delivery.deliver(call)

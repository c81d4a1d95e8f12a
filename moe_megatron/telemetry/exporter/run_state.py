"""The newest state of a run and its totals, shared by the thread that writes and those that read.

The telemetry thread adds one step at a time; scrapes take a `RunView`, in which everything belongs
to the same step. Times are those of a monotonic clock of this process, and a view says what that
clock shows: ages are then differences of one clock, and no alert compares the clocks of two
machines. It does not know names of metrics (`series` does).
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from moe_megatron.telemetry.exporter.run_totals import RunTotals
from moe_megatron.telemetry.metric import LOAD_BUCKETS, PHASES, STEP_SECONDS_BUCKETS
from moe_megatron.telemetry.uptime.account import Account
from moe_megatron.telemetry.values.json_fields import Float64Array, Int64Array
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord, StepRuntime
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


@dataclass(slots=True, eq=False)
class Histograms:
    """R histograms over the same buckets.

    Attributes:
        bounds: upper bounds, each included in its bucket.
        counts: int64 [R, len(bounds) + 1], values in each bucket, not cumulative; the last column
            counts values above every bound.
        sums: float64 [R], sums of the values.
    """

    bounds: Float64Array
    counts: Int64Array
    sums: Float64Array

    @classmethod
    def empty(cls, rows: int, bounds: tuple[float, ...]) -> "Histograms":
        """Histograms without any values."""
        return cls(
            np.array(bounds), np.zeros((rows, len(bounds) + 1), dtype=np.int64), np.zeros(rows)
        )

    def observe(self, values: Float64Array) -> None:
        """Add `values` [R, N]; NaN is ignored."""
        rows, columns = self.counts.shape
        buckets = np.searchsorted(self.bounds, values, side="left")
        buckets += np.arange(rows)[:, None] * columns
        known = ~np.isnan(values)
        self.counts += np.bincount(buckets[known], minlength=rows * columns).reshape(rows, columns)
        self.sums += np.where(known, values, 0.0).sum(axis=1)

    def copy(self) -> "Histograms":
        """A copy that later values do not change."""
        return Histograms(self.bounds, self.counts.copy(), self.sums.copy())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunView:
    """The state of a run at one moment."""

    run: RunInfo
    started_at: float
    """When this process started to train, on the clock of `StepRuntime`."""
    now: float
    """When this view was taken, on the same clock."""
    epoch: float
    """What to add to a time on that clock for the seconds since 1970."""
    totals: RunTotals
    step_seconds: Histograms
    """One row. Starts empty in each process, like the next two."""
    loads: Histograms
    """One row for each MoE layer."""
    phase_seconds: Mapping[str, float]
    missed_steps: int = 0
    record: StepRecord | None = None
    """The last step; None before the first."""
    runtime: StepRuntime | None = None
    routing: RoutingSnapshot | None = None
    evaluations: Mapping[str, EvalRecord]
    """The newest evaluation of each split."""
    account: Account | None = None
    """Where the time of the run went; None if it has no journal."""
    lost_seconds: Mapping[str, float] = field(default_factory=dict)
    """The lost time of `account` by kind, which never decreases."""


class RunState:
    """Collects the records of one run.

    Args:
        run: The run.
        totals: Totals of the earlier steps, to continue from.
        published: Totals that may already have been published; see `RunTotals.at_least`.
        account: Gives the account of the run's time.
        clock: The clock of `StepRuntime`; the run starts now.
        wall: The seconds since 1970; read once, so that published times never move.
    """

    def __init__(
        self,
        run: RunInfo,
        totals: RunTotals | None = None,
        published: RunTotals | None = None,
        account: Callable[[], Account | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        num_layers = len(run.layers)
        empty = RunTotals.empty(num_layers, run.num_experts)
        self._lock = threading.Lock()
        self._account = account
        self._lost: dict[str, float] = {}
        self._clock = clock
        self._published = empty if published is None else published
        self._totals = empty.copy() if totals is None else totals.copy()
        started_at = clock()
        self._newest = RunView(
            run=run,
            started_at=started_at,
            now=started_at,
            epoch=wall() - started_at,
            totals=self._totals,
            step_seconds=Histograms.empty(1, STEP_SECONDS_BUCKETS),
            loads=Histograms.empty(num_layers, LOAD_BUCKETS),
            phase_seconds=dict.fromkeys(PHASES, 0.0),
            evaluations={},
        )
        self._last_step = run.start_step

    def add_step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Record one step."""
        loads = None if routing is None else routing.relative_load
        with self._lock:
            now = self._newest
            self._totals.add_step(record)
            now.step_seconds.observe(np.array([[record.step_seconds]]))
            if routing is not None and loads is not None:
                self._totals.add_routing(routing)
                now.loads.observe(loads)
            phases = dict(now.phase_seconds)
            runtime = record.runtime
            for phase, seconds in () if runtime is None else runtime.phase_seconds.items():
                phases[phase] += seconds
            self._newest = replace(
                now,
                record=record,
                runtime=runtime or now.runtime,
                routing=routing or now.routing,
                phase_seconds=phases,
                missed_steps=now.missed_steps + max(0, record.step - self._last_step - 1),
            )
            self._last_step = record.step

    def add_evaluation(self, record: EvalRecord) -> None:
        """Record one evaluation."""
        with self._lock:
            evaluations = {**self._newest.evaluations, record.split: record}
            self._newest = replace(self._newest, evaluations=evaluations)

    def view(self) -> RunView:
        """The current state, all of the same step; later records do not change it."""
        account = self._account()
        with self._lock:
            now = self._newest
            for kind, seconds in () if account is None else account.lost.items():
                # Not the sum of what happened but a judgement, which may still move a little.
                self._lost[kind] = max(seconds, self._lost.get(kind, 0.0))
            return replace(
                now,
                account=account,
                lost_seconds=dict(self._lost),
                now=self._clock(),
                totals=self._totals.at_least(self._published),
                step_seconds=now.step_seconds.copy(),
                loads=now.loads.copy(),
            )

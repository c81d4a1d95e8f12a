"""Totals of earlier processes of a run, read before the logs are rewound to the checkpoint.

Two sums are needed to continue: that of the steps up to the checkpoint, from which the run resumes,
and that of all steps in the logs, which may already have been published. The sink here reads both
when a run starts, so it must come before the sinks that write the logs. It does not know who
publishes the sums.
"""

from pathlib import Path

from moe_megatron.telemetry.exporter.run_totals import RunTotals
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing_after,
)
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


class EarlierTotals:
    """Sink that reads the earlier totals when the run starts; it ignores every record.

    Training sums come from the whole metrics.jsonl. Routing sums come from the profile of the
    checkpoint and the end of routing.jsonl: that file may hold many gigabytes.
    """

    name = "exporter"

    def __init__(self) -> None:
        self.until_checkpoint: RunTotals | None = None
        self.in_logs: RunTotals | None = None

    def start(self, run: RunInfo) -> None:
        """Reads the sums; a run that starts at step 0 has none."""
        totals = RunTotals.empty(len(run.layers), run.num_experts)
        everything = totals.copy()
        if run.start_step:
            if run.earlier_routing is not None:
                totals.add_routing(run.earlier_routing)
                everything.add_routing(run.earlier_routing)
            if run.run_dir is not None:
                _add_metrics(run.run_dir / METRICS_FILE, run.start_step, totals, everything)
                _add_routing_after(run.run_dir / ROUTING_FILE, run.start_step, everything)
        self.until_checkpoint, self.in_logs = totals, everything

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Does nothing: only earlier steps are read."""

    def evaluation(self, record: EvalRecord) -> None:
        """Does nothing: only earlier steps are read."""

    def close(self) -> None:
        """Does nothing: there is nothing to release."""


def _add_metrics(path: Path, last_step: int, until: RunTotals, everything: RunTotals) -> None:
    if not path.exists():
        return
    for record in read_metrics(path):
        if isinstance(record, StepRecord):
            everything.add_step(record)
            if record.step <= last_step:
                until.add_step(record)


def _add_routing_after(path: Path, last_step: int, everything: RunTotals) -> None:
    if not path.exists():
        return
    for snapshot in read_routing_after(path, last_step):
        everything.add_routing(snapshot)

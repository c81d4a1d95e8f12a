"""A sink that keeps a run's records in memory, for results and notebooks."""

from dataclasses import dataclass, field

from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


@dataclass(slots=True)
class History:
    """Everything a run reported, in order. Filled on rank 0 only."""

    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvalRecord] = field(default_factory=list)
    last_routing: RoutingSnapshot | None = None
    """Routing of the last measured step."""

    def start(self, run: RunInfo) -> None:
        """Nothing to prepare: a second run appends."""

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Keep a step."""
        self.steps.append(record)
        if routing is not None:
            self.last_routing = routing

    def evaluation(self, record: EvalRecord) -> None:
        """Keep an evaluation."""
        self.evaluations.append(record)

    def close(self) -> None:
        """Nothing to release."""

    @property
    def losses(self) -> list[float | None]:
        """Training loss of each step, in nats per token."""
        return [record.loss for record in self.steps]

    @property
    def last_evaluation(self) -> EvalRecord | None:
        """The newest evaluation, if there was one."""
        return self.evaluations[-1] if self.evaluations else None

"""Log messages as JSON, one object per line, for Fluentd, Logstash and the like.

Every line has time, level, run, process and step; the numbers of a step are fields, not text. This
module has no access to the training data, and messages of the package do not quote it.
"""

import json
import logging
from datetime import UTC, datetime

from moe_megatron.telemetry.identity import Identity
from moe_megatron.telemetry.values.json_fields import write_float
from moe_megatron.telemetry.values.layer_values import layer_values
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

logger = logging.getLogger(__name__)

Field = str | int | float | bool | None


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON.

    Args:
        identity: The run and process that log.
    """

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self.identity = identity
        self.step: int | None = None
        """The last finished step; the training loop updates it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of JSON, without a newline."""
        moment = datetime.fromtimestamp(record.created, UTC)
        data: dict[str, Field] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "run_id": self.identity.run_id,
            "rank": self.identity.rank,
            "trace_id": self.identity.trace_id,
            "span_id": self.identity.span_id,
            "step": self.step,
        }
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        data.update(getattr(record, "fields", {}))
        return json.dumps(data, allow_nan=False, default=str)


class LogSink:
    """Sink that logs the start, every `interval` steps and every evaluation at level INFO."""

    name = "json_log"

    def __init__(self, interval: int) -> None:
        self._interval = interval

    def start(self, run: RunInfo) -> None:
        """Logs what is trained."""
        fields = {"total_steps": run.total_steps, "start_step": run.start_step}
        _log("training starts", {**fields, "world_size": run.world_size})

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Logs every `interval`-th step, and every step that the optimizer skipped."""
        if record.step % self._interval and not record.skipped:
            return
        fields: dict[str, Field] = {
            "step": record.step,
            "loss": write_float(record.loss),
            "learning_rate": write_float(record.learning_rate),
            "grad_norm": write_float(record.grad_norm),
            "step_seconds": write_float(record.step_seconds),
            "tokens": record.tokens,
            "skipped": record.skipped,
        }
        if routing is not None:
            runtime = record.runtime
            values = layer_values(routing, None if runtime is None else runtime.dead_experts)
            fields["expert_load_max_ratio"] = write_float(
                float(values["moe_expert_load_max_ratio"].max())
            )
            fields["experts_dead"] = int(values["moe_experts_dead"].sum())
            fields["tokens_dropped"] = int(routing.dropped.sum())
        _log("step", fields)

    def evaluation(self, record: EvalRecord) -> None:
        """Logs the evaluation."""
        loss = write_float(record.loss)
        measures = {name: write_float(value) for name, value in record.measures.items()}
        fields = {"step": record.step, "split": record.split, "loss": loss, **measures}
        _log("evaluation", fields)

    def close(self) -> None:
        """Logs that telemetry ends."""
        _log("telemetry ends", {})


def _log(message: str, fields: dict[str, Field]) -> None:
    logger.info(message, extra={"fields": fields})

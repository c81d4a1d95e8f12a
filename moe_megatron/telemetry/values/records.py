"""Records of a training step, an evaluation and a run, for everything that reports them.

They are plain values with simple derived numbers and a JSON form (one object per line of
metrics.jsonl; "kind" distinguishes them). The routing of a step is in `snapshot`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from moe_megatron.telemetry.catalog import quantity_names
from moe_megatron.telemetry.sinks.health import SinkState
from moe_megatron.telemetry.values.expert_load import BoolArray
from moe_megatron.telemetry.values.json_fields import (
    Float64Array,
    read_bool,
    read_float,
    read_float_array,
    read_int,
    read_object,
    read_optional_float,
    read_str,
    require_fields,
    write_float,
)
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.task_scores import TaskScore

_WHERE_MEASURED = ("measures", "memory_bytes", "peak_memory_bytes", "expert_rank_seconds")
_MAX_EXPONENT = 20.0  # as in Megatron: an untrained model prints 4.9e8 in place of an overflow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepRuntime:
    """What the machine did during one step; exported during the run but not kept in a file.

    W is the number of processes. Times are those of `time.monotonic` of the first process.

    Attributes:
        ended_at: when the step ended.
        phase_seconds: wall time of the first process since the last step, for each of
            `metric.PHASES`.
        rank_compute_seconds: float64 [W], forward time of each process in attention and experts,
            without communication; 0 where it was not measured.
        rank_memory_bytes: float64 [W], memory of each process.
        checkpoint_step: step of the newest checkpoint; None when the run saves none.
        checkpoint_at: when this process wrote it, or when training started.
        save_failed: whether the last save failed.
        failed_saves: saves of this process that failed.
        masked_experts: number of experts that are masked in each MoE layer; () for none.
        dead_experts: bool [L, E], the dead experts by `RecentUse`; None if not measured.
        other_sinks: the logs and sinks of all processes but the first that were ever broken.
    """

    ended_at: float
    phase_seconds: Mapping[str, float]
    rank_compute_seconds: Float64Array
    rank_memory_bytes: Float64Array
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None
    save_failed: bool = False
    failed_saves: int = 0
    masked_experts: tuple[int, ...] = ()
    dead_experts: BoolArray | None = None
    other_sinks: Mapping[str, SinkState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One training step.

    Attributes:
        step: 1-based step number.
        loss: language model loss of the global batch in nats per token; None when not known.
        learning_rate: learning rate of this step; None when not known.
        grad_norm: global gradient norm before clipping; None when not known.
        step_seconds: wall time of the step in seconds.
        tokens: tokens of the global batch.
        total_steps: steps the whole run is planned to take.
        skipped: whether the optimizer made no update because a gradient was not finite.
        measures: what the loss function reports besides the loss, by name; {} for most.
        memory_bytes: memory of the process that has most, at the end of the step: allocated on its
            GPU, or resident on a CPU; None where it was not measured.
        peak_memory_bytes: the most that a process held at once since the end of the step before,
            evaluation and saving between them included; None where it was not measured.
        expert_rank_seconds: forward time of a micro-batch in attention and experts, without
            communication, mean over the processes of each expert parallel rank; () where there is
            one rank, or nothing was measured.
        runtime: what the machine did during the step; None when read from a file.
    """

    step: int
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    step_seconds: float
    tokens: int
    total_steps: int
    skipped: bool = False
    measures: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    expert_rank_seconds: tuple[float, ...] = ()
    runtime: StepRuntime | None = field(default=None, compare=False)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the global batch per second; 0.0 when the step took no measurable time."""
        return self.tokens / self.step_seconds if self.step_seconds > 0 else 0.0

    def to_json_dict(self) -> dict[str, Any]:
        """Returns the metrics.jsonl object; null means unknown, "nan" a loss that was NaN.

        `runtime` is not in it, nor are measures, memory and times of ranks where there are none.
        """
        where_measured: dict[str, Any] = {}
        for name in ("memory_bytes", "peak_memory_bytes"):
            if getattr(self, name) is not None:
                where_measured[name] = getattr(self, name)
        if self.expert_rank_seconds:
            where_measured["expert_rank_seconds"] = list(self.expert_rank_seconds)
        return {
            "kind": "step",
            "step": self.step,
            "total_steps": self.total_steps,
            "loss": write_float(self.loss),
            "learning_rate": write_float(self.learning_rate),
            "grad_norm": write_float(self.grad_norm),
            "step_seconds": write_float(self.step_seconds),
            "tokens": self.tokens,
            "skipped": self.skipped,
            **where_measured,
            **_written(self.measures),
        }

    @classmethod
    def from_json_dict(cls, data: object) -> Self:
        """Reads what `to_json_dict` wrote.

        Raises:
            DataError: a field is missing, unknown or of the wrong type.
        """
        names = ("kind", "step", "total_steps", "loss", "learning_rate", "grad_norm")
        more = ("step_seconds", "tokens", "skipped")
        fields = require_fields(data, (*names, *more), optional=_WHERE_MEASURED)
        memory, peak = fields.get("memory_bytes"), fields.get("peak_memory_bytes")
        seconds = read_float_array(fields.get("expert_rank_seconds", []), "expert_rank_seconds")
        return cls(
            step=read_int(fields["step"], "step"),
            loss=read_optional_float(fields["loss"], "loss"),
            learning_rate=read_optional_float(fields["learning_rate"], "learning_rate"),
            grad_norm=read_optional_float(fields["grad_norm"], "grad_norm"),
            step_seconds=read_float(fields["step_seconds"], "step_seconds"),
            tokens=read_int(fields["tokens"], "tokens"),
            total_steps=read_int(fields["total_steps"], "total_steps"),
            skipped=read_bool(fields["skipped"], "skipped"),
            measures=_read(fields.get("measures", {})),
            memory_bytes=None if memory is None else read_int(memory, "memory_bytes"),
            peak_memory_bytes=None if peak is None else read_int(peak, "peak_memory_bytes"),
            expert_rank_seconds=tuple(seconds.tolist()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRecord:
    """One evaluation on held-out data.

    Attributes:
        step: training step after which it ran.
        split: "validation" or "test".
        loss: mean loss in nats per token.
        tasks: of each task, and of the base domain, which the mean leaves out; empty where no task
            was evaluated by itself.
        measures: what the loss function reports besides the loss, by name; {} for most.
    """

    step: int
    split: str
    loss: float
    tasks: tuple[TaskScore, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """`exp(loss)`, with the exponent capped at 20; NaN for a loss that is NaN."""
        return math.exp(min(self.loss, _MAX_EXPONENT))  # in this order `min` keeps a NaN

    def to_json_dict(self) -> dict[str, Any]:
        """Returns the metrics.jsonl object."""
        return {
            "kind": "eval",
            "step": self.step,
            "split": self.split,
            "loss": write_float(self.loss),
            **({"tasks": [it.to_json_dict() for it in self.tasks]} if self.tasks else {}),
            **_written(self.measures),
        }

    @classmethod
    def from_json_dict(cls, data: object) -> Self:
        """Reads what `to_json_dict` wrote.

        Raises:
            DataError: a field is missing, unknown or of the wrong type.
        """
        names = ("kind", "step", "split", "loss")
        fields = require_fields(data, names, optional=("tasks", "measures"))
        return cls(
            step=read_int(fields["step"], "step"),
            split=read_str(fields["split"], "split"),
            loss=read_float(fields["loss"], "loss"),
            tasks=tuple(map(TaskScore.from_json_dict, fields.get("tasks", ()))),
            measures=_read(fields.get("measures", {})),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What sinks are given about the run when it starts.

    Attributes:
        run_dir: directory of the run; None to write nothing.
        total_steps: steps the whole run is planned to take.
        start_step: steps already done; > 0 when the run resumes from a checkpoint.
        num_layers: transformer layers, dense and MoE together.
        num_experts: experts in an MoE layer.
        top_k: target number of experts for each token.
        world_size: number of processes.
        layers: global 1-based numbers of the MoE layers.
        quantities: names of the run's quantities, in order; by default all registered ones.
        description: one line for people.
        labels: values of `catalog.RUN_INFO_LABELS`; missing ones are "".
        expert_ranks: processes that the experts of a layer are distributed over, in order.
        flops_per_token: operations of the model, forward and backward; None when not known.
        peak_flops: peak operations per second of all devices together; None when not known.
        saves_checkpoints: whether checkpoints are written.
        tasks: names of the tasks whose tokens are counted by themselves, too.
        hosts: name of each process's machine, by rank; empty where not known.
        earlier_routing: routing of the first `start_step` steps, from the checkpoint; None when
            there is none. Sinks must not change it.
    """

    run_dir: Path | None
    total_steps: int
    start_step: int
    num_layers: int
    num_experts: int
    top_k: int
    world_size: int
    layers: tuple[int, ...]
    description: str
    quantities: tuple[str, ...] = field(default_factory=quantity_names)
    labels: Mapping[str, str] = field(default_factory=dict)
    expert_ranks: int = 1
    flops_per_token: float | None = None
    peak_flops: float | None = None
    saves_checkpoints: bool = False
    hosts: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    earlier_routing: RoutingProfile | None = None


def _written(measures: Mapping[str, float]) -> dict[str, Any]:
    """The field of a record's JSON object that holds its measures; none where it has none."""
    written = {name: write_float(value) for name, value in measures.items()}
    return {"measures": written} if written else {}


def _read(written: object) -> dict[str, float]:
    """The measures that `_written` wrote."""
    measures = read_object(written, "measures")
    return {name: read_float(value, name) for name, value in measures.items()}

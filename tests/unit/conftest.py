"""A pretend run directory, written by the real sinks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

MakeRunDir = Callable[..., Path]


@pytest.fixture
def make_run_dir(tmp_path: Path) -> MakeRunDir:
    """Writes `steps` steps; layer 2's expert 1 dies in the second half, unless `healthy`.

    As many assignments as `beyond` are more than one a token. Further keywords are quantities, the
    same in all layers.
    """

    def make(
        steps: int = 40,
        *,
        num_layers: int = 2,
        num_experts: int = 4,
        lost: int = 0,
        healthy: bool = False,
        beyond: int = 0,
        name: str = "run",
        **more: float,
    ) -> Path:
        layers = tuple(range(2, 2 + num_layers))
        run_dir = tmp_path / name
        run = RunInfo(
            run_dir=run_dir,
            total_steps=steps,
            start_step=0,
            num_layers=num_layers + 1,
            num_experts=num_experts,
            top_k=1,
            world_size=1,
            layers=layers,
            description="pretend",
        )
        metrics, routing = MetricsLog(), RoutingLog()
        metrics.start(run)
        routing.start(run)
        for step in range(1, steps + 1):
            counts = np.full((num_layers, num_experts), 10)
            if step > steps // 2 and not healthy:
                counts[0, :2] = (20, 0)
            record = StepRecord(
                step=step,
                loss=9.0 - step / steps,
                learning_rate=1e-3,
                grad_norm=1.0,
                step_seconds=0.5,
                tokens=1000,
                total_steps=steps,
            )
            snapshot = RoutingSnapshot(
                step=step,
                tokens=10 * num_experts + lost - beyond,
                top_k=1,
                layers=layers,
                tokens_per_expert=counts,
                assigned=counts.sum(axis=1) + lost,
                dropped=np.full(num_layers, lost),
                per_layer={
                    "entropy": np.full(num_layers, 0.5),
                    "aux_loss": np.ones(num_layers),
                    "z_loss": np.full(num_layers, 2.0),
                    **{name: np.full(num_layers, value) for name, value in more.items()},
                },
            )
            metrics.step(record, snapshot)
            routing.step(record, snapshot)
        metrics.evaluation(EvalRecord(step=steps, split="validation", loss=5.0))
        metrics.close()
        routing.close()
        return run_dir

    return make

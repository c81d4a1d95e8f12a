"""Small, exact records of a pretend run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.telemetry.values.records import RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


@pytest.fixture
def make_snapshot() -> Callable[..., RoutingSnapshot]:
    """Random counts that conserve assignments; keywords replace fields, or single quantities."""

    def make(
        step: int = 1,
        *,
        num_layers: int = 2,
        num_experts: int = 4,
        per_layer: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> RoutingSnapshot:
        rng = np.random.default_rng(abs(step))
        tokens, top_k = 50, 2
        dropped = rng.integers(0, 5, num_layers)
        values = {
            "step": step,
            "tokens": tokens,
            "top_k": top_k,
            "layers": tuple(range(2, 2 + num_layers)),
            "tokens_per_expert": np.stack(
                [
                    rng.multinomial(tokens * top_k - lost, np.full(num_experts, 1 / num_experts))
                    for lost in dropped
                ]
            ),
            "dropped": dropped,
            **fields,
        }
        quantities = {
            "entropy": rng.random(num_layers),
            "aux_loss": 1 + rng.random(num_layers),
            "z_loss": rng.random(num_layers) / 3,
        }
        assigned = values["tokens"] * values["top_k"]
        values.setdefault("assigned", np.full(len(values["layers"]), assigned))
        return RoutingSnapshot(**values, per_layer=quantities | dict(per_layer or {}))

    return make


@pytest.fixture
def make_step() -> Callable[..., StepRecord]:
    def make(step: int = 1, **fields: Any) -> StepRecord:
        values = {
            "step": step,
            "loss": 5.123,
            "learning_rate": 2e-3,
            "grad_norm": 0.5,
            "step_seconds": 0.5,
            "tokens": 2560,
            "total_steps": 300,
        }
        return StepRecord(**(values | fields))

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunInfo]:
    def make(**fields: Any) -> RunInfo:
        values = {
            "run_dir": tmp_path / "run",
            "total_steps": 300,
            "start_step": 0,
            "num_layers": 3,
            "num_experts": 4,
            "top_k": 2,
            "world_size": 1,
            "layers": (2, 3),
            "description": "2 MoE layers of 4 experts, top-2",
        }
        return RunInfo(**(values | fields))

    return make

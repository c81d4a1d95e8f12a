"""A short run gives the numbers that were recorded of it, under every layout.

They were recorded on one machine; other processors add in another order, so losses may differ in
the fourth digit and a few tokens may go elsewhere. What must not change in silence, such as the
order in which weights are drawn or a coefficient, changes far more. To record them anew on purpose:

    python -m tests.functional.test_golden_runs
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.testing.jobs import Job, run_jobs, step_records

pytestmark = pytest.mark.distributed

RECORDED = Path(__file__).with_name("golden_runs.json")
STEPS, SHOWN = 20, (1, 10, 20)
SHAPE: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.precision": "fp32",
    "training.eval_interval": None,
    "checkpoint.save_interval": None,
}
TP2, EP2 = {"parallel.tensor_parallel_size": 2}, {"parallel.expert_parallel_size": 2}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "tp2": (2, TP2),
    "ep2": (2, EP2),
    "pp2": (2, {"parallel.pipeline_parallel_size": 2}),
    "cp2_ep2": (2, {"parallel.context_parallel_size": 2, **EP2}),
    "tp2_ep2": (4, {**TP2, **EP2}),
}
DEEP = {"tp2", "pp2", "cp2_ep2", "tp2_ep2"}
"""Those whose losses test_parallel_parity.py compares with those of one process, too."""


def numbers_of(run_dir: Path) -> dict[str, Any]:
    """What is recorded of a run."""
    steps = step_records(run_dir)
    loads = {it.step: it.tokens_per_expert.tolist() for it in read_routing(run_dir / ROUTING_FILE)}
    return {
        "loss": [round(float(step.loss or 0), 6) for step in steps],
        "grad_norm": [round(float(step.grad_norm or 0), 5) for step in steps],
        "load": {str(step): loads[step] for step in SHOWN},
    }


def run(folder: Path, layouts: list[str]) -> dict[str, dict[str, Any]]:
    """The numbers of these layouts; those of one size share their processes."""
    for size in {LAYOUTS[name][0] for name in layouts}:
        jobs = [
            Job(run_dir=folder / name, overrides={**SHAPE, **LAYOUTS[name][1]})
            for name in layouts
            if LAYOUTS[name][0] == size
        ]
        run_jobs(jobs, world_size=size)
    return {name: numbers_of(folder / name) for name in layouts}


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]
) -> dict[str, dict[str, Any]]:
    return run(tmp_path_factory.mktemp("golden"), chosen("layout"))


@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=pytest.mark.deep if n in DEEP else ()) for n in LAYOUTS]
)
def test_numbers_are_those_that_were_recorded(
    layout: str, found: dict[str, dict[str, Any]]
) -> None:
    ours, recorded = found[layout], json.loads(RECORDED.read_text())
    assert ours["loss"] == pytest.approx(recorded["loss"], rel=1e-3)
    assert ours["grad_norm"] == pytest.approx(recorded["grad_norm"], rel=2e-2)
    for step in map(str, SHOWN):
        load, before = np.array(ours["load"][step]), np.array(recorded["load"][step])
        assert load.shape == before.shape
        assert np.abs(load - before).max() <= 0.02 * before.sum(axis=1).max(), step


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        numbers = run(Path(folder), ["one"])["one"]
    RECORDED.write_text(json.dumps(numbers) + "\n")

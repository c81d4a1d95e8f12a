"""Writes a routing history until it is killed or done, for tests that kill it.

    python -m moe_megatron.testing.history_writer FOLDER START_STEP LAST_STEP

The content of a step is determined by its number, so that a reader can check every value. After
each `SinkSet.flush` it prints the step up to which the history must survive.
"""

import sys
from pathlib import Path

import numpy as np

from moe_megatron.telemetry.catalog import quantity_names
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.records import RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

LAYERS = (1, 2, 4)
NUM_EXPERTS = 8
TOP_K = 2


def snapshot(step: int) -> RoutingSnapshot:
    """The routing of a step: random, but always the same."""
    rng = np.random.default_rng(step)
    tokens = 100 + step % 7
    dropped = rng.integers(0, 5, len(LAYERS))
    shares = np.full(NUM_EXPERTS, 1 / NUM_EXPERTS)
    return RoutingSnapshot(
        step=step,
        tokens=tokens,
        top_k=TOP_K,
        layers=LAYERS,
        tokens_per_expert=np.stack(
            [rng.multinomial(tokens * TOP_K - lost, shares) for lost in dropped]
        ),
        assigned=np.full(len(LAYERS), tokens * TOP_K),
        dropped=dropped,
        per_layer={name: rng.random(len(LAYERS)) for name in quantity_names()},
    )


def run_info(start_step: int) -> RunInfo:
    """The run to which the snapshots belong."""
    return RunInfo(
        run_dir=None,
        total_steps=10**6,
        start_step=start_step,
        num_layers=max(LAYERS),
        num_experts=NUM_EXPERTS,
        top_k=TOP_K,
        world_size=1,
        layers=LAYERS,
        description="",
    )


def main(folder: Path, start_step: int, last_step: int) -> None:
    """Write the steps after `start_step`, with a flush, as for a checkpoint, every 50 steps."""
    sinks = SinkSet([HistorySink(folder, flush_seconds=0.01)], queue_size=10**6)
    sinks.start(run_info(start_step))
    for step in range(start_step + 1, last_step + 1):
        record = StepRecord(
            step=step,
            loss=None,
            learning_rate=None,
            grad_norm=None,
            step_seconds=0.0,
            tokens=0,
            total_steps=10**6,
        )
        sinks.step(record, snapshot(step))
        if step % 50 == 0 and sinks.flush(timeout=60):
            print(step, flush=True)
    sinks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

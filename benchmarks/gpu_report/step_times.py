"""Times the steps of all shapes in one precision; one process on one device.

Every case is a run of its own, so that one which does not fit the memory leaves the others theirs.
"""

import argparse
import gc
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_report.results import case, last
from benchmarks.gpu_report.shapes import (
    PRECISIONS,
    ROUTINGS,
    SHAPES,
    WARM_UP,
    configuration,
)
from benchmarks.gpu_report.speed import speed
from moe_megatron.config import RunConfig
from moe_megatron.mcore import world
from moe_megatron.platform.peak import peak_tflops
from moe_megatron.run.start import Attachments, start
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot


class Description:
    """A sink that keeps what a run says of itself when it starts."""

    info: RunInfo

    def start(self, run: RunInfo) -> None:
        """Keep it."""
        self.info = run

    def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        """Nothing to keep."""

    def evaluation(self, record: EvalRecord) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Nothing to release."""


def main() -> None:
    """Time every shape of a profile with every routing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=sorted(SHAPES), required=True)
    parser.add_argument("--precision", choices=sorted(PRECISIONS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    for shape in SHAPES[arguments.profile]:
        for routing in ROUTINGS:
            with case(arguments.folder, f"{shape.name}, {routing}") as numbers:
                run_dir = arguments.folder / f"{shape.name} {routing}"
                config = configuration(shape, routing, arguments.precision, str(run_dir))
                numbers.update(measure(config, arguments.precision))
            _release()
    world.leave()


def measure(config: RunConfig, precision: str) -> dict[str, Any]:
    """Train and say how fast.

    Args:
        config: The run.
        precision: Whose peak the MFU is a share of.

    Returns:
        What `speed` returns; the loss; the most memory that tensors took, in GiB, on a GPU; and how
        many times the mean load the busiest expert of a layer had in the last step.
    """
    on_gpu = torch.cuda.is_available()
    description = Description()
    attached = Attachments(sinks=(description,))
    history = start(config, attached=attached, quiet_megatron=False, say=print).history
    steps = history.steps[WARM_UP:]
    peak = peak_tflops(description.info.labels["device"], precision)
    load = history.last_routing
    # Telemetry begins the allocator's peak anew with each step.
    most = max([0, *(step.peak_memory_bytes or 0 for step in history.steps)])
    return {
        **speed(
            step_seconds=median_step(steps),
            tokens=steps[0].tokens,
            flops_per_token=description.info.flops_per_token,
            peak_tflops=None if peak is None else peak * description.info.world_size,
        ),
        "last_loss": last([step.loss for step in steps if step.loss is not None]),
        "peak_memory_gib": most / 2**30 if on_gpu else None,
        "busiest_expert": None if load is None else float(load.imbalance.max()),
    }


def median_step(steps: Sequence[StepRecord]) -> float:
    """Seconds of the median step, from the end of one to the end of the next.

    What the device still does of one step when the next one starts is in it; in `step_seconds` of a
    record it need not be.
    """
    ends = [step.runtime.ended_at for step in steps if step.runtime is not None]
    return statistics.median(end - start for start, end in itertools.pairwise(ends))


def _release() -> None:
    """Give back the memory of a run that has ended or failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

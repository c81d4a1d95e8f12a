"""What telemetry costs a step at 61 layers x 256 experts, and whether that is under 1 %.

Pairs of steps with and without it, as many as the time allows, in one process on one device.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.results import case
from benchmarks.megatron_rank import measure
from benchmarks.paired import cost
from benchmarks.telemetry_overhead import own_time, task
from moe_megatron.mcore import world

WARM_UP = 6
"""Steps before the first pair."""

SHAPES: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    # 3.1 B weights: as wide as 61 layers x 256 experts fit 78 GiB with the optimizer's state.
    "gpu": (
        "demo_moe",
        {
            "parallel.expert_parallel_size": 1,
            "model.num_layers": 61,
            "moe.num_experts": 256,
            "model.hidden_size": 512,
            "model.num_attention_heads": 8,
            "moe.top_k": 8,
            "moe.expert_hidden_size": 128,
            "data.sequence_length": 2048,
            "training.micro_batch_size": 2,
            "training.global_batch_size": 4,
        },
        "bf16",
    ),
    "tiny": (
        "test_tiny",
        {
            "model.num_layers": 3,
            "moe.num_experts": 64,
            "megatron.mock-data": True,
        },
        "fp32",
    ),
}
"""Preset, differences from it, and precision."""


def main() -> None:
    """Measure and write the one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=sorted(SHAPES), required=True)
    parser.add_argument("--seconds", type=float, required=True, help="the start included")
    parser.add_argument("--pairs", type=int, default=2000, help="of steps, at most")
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    preset, changes, precision = SHAPES[arguments.profile]
    name = f"{changes['model.num_layers']} layers x {changes['moe.num_experts']} experts"
    steps = WARM_UP + 2 * arguments.pairs
    with case(arguments.folder, name) as numbers:
        job = task(
            preset, dict(changes), steps=steps, seconds=arguments.seconds, precision=precision
        )
        numbers.update(summary(measure(job)))
    world.leave()


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the pairs of a run show.

    Args:
        result: Of `megatron_rank.measure`.

    Returns:
        The step without telemetry and the difference in milliseconds, the difference as a share
        with its 95 % interval, telemetry's own processor time in milliseconds, and the verdict.
    """
    found = cost(result["on"], result["wall"], WARM_UP)
    own, _ = own_time(dict(result), WARM_UP)
    return {
        "pairs": found.pairs,
        "off_ms": found.off_ms,
        "difference_ms": found.difference_ms,
        "share": found.share,
        "share_interval": found.share_interval,
        "own_processor_ms": statistics.median(own),
        "verdict": found.verdict(),
    }


if __name__ == "__main__":
    main()

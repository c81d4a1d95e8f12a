"""What telemetry costs a step: counters, their reduction, the profile and the JSON logs.

Telemetry is switched on and off from step to step within one run (on off, off on, ...), and
neighbouring steps are compared, so that what else the machine does cancels out. Two runs: the main
job, and a narrow model with as many MoE layers and experts as the largest published ones, where
there is most to count and least to compute. A second table times the counters of one router call.
Run it from the repository root: `python -m benchmarks.telemetry_overhead`.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.ranks import run_ranks

ROUTERS = ((4, 8, 2, 1024), (61, 256, 8, 1024))
"""Layers, experts, top k and tokens of the micro benchmark."""
LARGE = {
    "model.num_layers": 61,
    "model.hidden_size": 64,
    "model.num_attention_heads": 4,
    "moe.num_experts": 256,
    "moe.top_k": 8,
    "moe.expert_hidden_size": 32,
}
"""What the second run has other than the main job."""


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--large-pairs", type=int, default=30, help="of 61 layers x 256 experts")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before the pairs")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    large = f"{LARGE['model.num_layers']} layers x {LARGE['moe.num_experts']} experts"
    rows = [
        *_run("demo_moe", {}, arguments.pairs, arguments),
        *_run(large, LARGE, arguments.large_pairs, arguments),
    ]
    notes = [
        f"demo_moe in {arguments.precision}, 2 processes with 1 thread and 1 core each, "
        f"{arguments.pairs} and {arguments.large_pairs} pairs of steps after {arguments.warm_up} "
        "others; difference: median of (on - off) within a pair, with the 95 % interval of that "
        "median; a negative one is noise",
        f"{large}: demo_moe with hidden size {LARGE['model.hidden_size']} and experts of width "
        f"{LARGE['moe.expert_hidden_size']}, top {LARGE['moe.top_k']}",
        "sinks: metrics.jsonl, routing.jsonl, history, Prometheus exporter; they work in a thread "
        "of their own, in part during the step that follows",
    ]
    pairs = machine.table(
        ["run", "time", "off ms", "on ms", "difference ms", "95 % interval ms", "of a step"], rows
    )
    counters = machine.table(
        ["MoE layers", "experts", "top k", "tokens", "one router call ms", "all layers ms"],
        [_counting(*shape) for shape in ROUTERS],
    )
    text = machine.heading("Cost of telemetry", notes)
    machine.write(arguments.output, f"{text}\n{pairs}\n{counters}")


def _run(
    name: str, shape: dict[str, Any], pairs: int, arguments: argparse.Namespace
) -> list[list[str]]:
    overrides = {
        **shape,
        "training.train_steps": arguments.warm_up + 2 * pairs,
        "training.precision": arguments.precision,
        "training.eval_interval": 10**6,
        "training.eval_steps": 1,
        "checkpoint.save_interval": None,
    }
    result = run_ranks(
        "benchmarks.megatron_rank",
        {"preset": "demo_moe", "overrides": overrides, "mode": "telemetry"},
    )
    return [
        [name, *_row(time_name, result, key, arguments.warm_up)]
        for time_name, key in (("wall clock", "wall"), ("processor, both ranks", "processor"))
    ]


def _row(name: str, result: dict[str, Any], key: str, warm_up: int) -> list[str]:
    steps = list(zip(result["on"], result[key], strict=True))[warm_up:]
    off, on, differences = [], [], []
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        assert {first[0], second[0]} == {True, False}, "a pair has one step of each kind"
        with_telemetry, without = sorted((first, second), reverse=True)
        on.append(1e3 * with_telemetry[1])
        off.append(1e3 * without[1])
        differences.append(on[-1] - off[-1])
    middle = statistics.median(differences)
    low, high = _interval(differences)
    base = statistics.median(off)
    return [
        name,
        f"{base:.1f}",
        f"{statistics.median(on):.1f}",
        f"{middle:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        f"{100 * middle / base:+.2f} %",
    ]


def _interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median, from order statistics: it assumes no distribution."""
    ordered, number = sorted(values), len(values)
    reach = 0.98 * number**0.5
    low = max(0, round(number / 2 - reach))
    high = min(number - 1, round(number / 2 + reach))
    return ordered[low], ordered[high]


def _counting(layers: int, experts: int, top_k: int, tokens: int) -> list[str]:
    """Time what `MeasuredRouter` adds to one call."""
    import torch

    import moe_megatron.mcore  # noqa: F401  # makes Megatron importable
    from moe_megatron.mcore.layers.measured_router import MeasuredRouter
    from moe_megatron.mcore.measure.counters import RoutingCounters

    torch.set_num_threads(1)
    row = RoutingCounters(tuple(range(1, layers + 1)), experts, torch.device("cpu")).row(1)
    logits = torch.randn(tokens, 1, experts)
    chosen = logits.view(tokens, experts).topk(top_k).indices
    routing_map = torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, chosen, True)
    # The whole router needs process groups; what is timed needs three of its fields.
    router = MeasuredRouter.__new__(MeasuredRouter)
    torch.nn.Module.__init__(router)
    router.config = type("Settings", (), {"moe_pad_expert_input_to_capacity": False})()
    router.score_function, router.topk = "softmax", top_k
    times = []
    for _ in range(200):
        started = time.process_time()
        with torch.no_grad():
            router._count(row, logits, logits, routing_map, None)
        times.append(1e3 * (time.process_time() - started))
    one = statistics.median(times)
    shape = [str(layers), str(experts), str(top_k), str(tokens)]
    return [*shape, f"{one:.3f}", f"{layers * one:.1f}"]


if __name__ == "__main__":
    main()

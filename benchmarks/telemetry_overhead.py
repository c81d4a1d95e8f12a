"""What telemetry costs a step: counters, their reduction, the profile and all sinks.

Telemetry is switched on and off from step to step within one run (on off, off on, ...), and
neighbouring steps are compared, so that what else the machine does cancels out. Two runs: the main
job, and a narrow model with as many MoE layers and experts as the largest published ones, where
there is most to count and least to compute. Each takes as many pairs as its time allows, and says
whether they are enough to tell that the cost is under 1 %. A second table has the processor time of
telemetry's own code, a third that of the counters of one router call. Run it from the repository
root: `python -m benchmarks.telemetry_overhead`.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.paired import Cost, cost, median_interval, verdict
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
CLOCKS = {"wall": "wall clock", "processor": "processor"}
"""What measures a step, by its name in the result of a rank."""
PARTS = ("counters", "end of step", "sinks")
"""Of what telemetry's own code does; own_time.py measures them."""
_START_SECONDS = 300.0
"""How much later than it should a rank may end before it is killed."""


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="of the main job's run")
    parser.add_argument("--large-seconds", type=float, default=600, help="of 61 x 256 experts")
    parser.add_argument("--pairs", type=int, default=2000, help="of steps, at most")
    parser.add_argument("--warm-up", type=int, default=6, help="steps before the pairs; even")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--processes", type=int, default=2, help="with 1 thread and 1 core each")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    large = f"{LARGE['model.num_layers']} layers x {LARGE['moe.num_experts']} experts"
    results = {
        "demo_moe": _run({}, arguments.seconds, arguments),
        large: _run(LARGE, arguments.large_seconds, arguments),
    }
    notes = [
        f"demo_moe in {arguments.precision}, {arguments.processes} process(es) with 1 thread and 1 "
        f"core each, {arguments.seconds:g} and {arguments.large_seconds:g} seconds of pairs of "
        f"steps, the first {arguments.warm_up} steps left out; difference: median of (on - off) "
        "within a pair, with the 95 % interval of that median; a negative one is noise",
        f"{large}: demo_moe with hidden size {LARGE['model.hidden_size']} and experts of width "
        f"{LARGE['moe.expert_hidden_size']}, top {LARGE['moe.top_k']}",
        "sinks: metrics.jsonl, routing.jsonl, history, Prometheus exporter; they work in a thread "
        "of their own during the next step that has telemetry on, in whose time they are",
        "processor: of all processes and threads together, waiting left out; second table: "
        "processor time of telemetry's own code, which other programs change less, against that "
        "of a whole step; what it takes from the rest, such as room in caches, comes on top",
    ]
    header = ["run", "time", "pairs", "off ms", "on ms", "difference ms", "95 % interval ms"]
    pairs = machine.table(
        [*header, "of a step", "95 % interval", "under 1 %?"],
        [
            [name, words, *_row(cost(result["on"], result[key], arguments.warm_up))]
            for name, result in results.items()
            for key, words in CLOCKS.items()
        ],
    )
    own = machine.table(
        [
            *("run", "steps", *(f"{part} ms" for part in PARTS), "all ms", "of a step"),
            *("95 % interval", "under 1 %?"),
        ],
        [[name, *_own_row(result, arguments.warm_up)] for name, result in results.items()],
    )
    counters = machine.table(
        ["MoE layers", "experts", "top k", "tokens", "one router call ms", "all layers ms"],
        [_counting(*shape) for shape in ROUTERS],
    )
    text = machine.heading("Cost of telemetry", notes)
    machine.write(arguments.output, f"{text}\n{pairs}\n{own}\n{counters}")


def task(
    preset: str, changes: dict[str, Any], *, steps: int, seconds: float, precision: str
) -> dict[str, Any]:
    """What a rank shall do to measure the cost of telemetry.

    Args:
        preset: What to train.
        changes: Differences from it.
        steps: To make at most.
        seconds: After which to stop, of the start too.
        precision: "bf16" and the like.
    """
    overrides = {
        **changes,
        "training.train_steps": steps,
        "training.precision": precision,
        "training.warmup_steps": 0,
        "training.eval_interval": None,
        "checkpoint.save_interval": None,
    }
    return {"preset": preset, "overrides": overrides, "mode": "telemetry", "seconds": seconds}


def _run(shape: dict[str, Any], seconds: float, arguments: argparse.Namespace) -> dict[str, Any]:
    job = task(
        "demo_moe",
        {**shape, "parallel.expert_parallel_size": arguments.processes},
        steps=arguments.warm_up + 2 * arguments.pairs,
        seconds=seconds,
        precision=arguments.precision,
    )
    return run_ranks(
        "benchmarks.megatron_rank",
        job,
        processes=arguments.processes,
        timeout=seconds + _START_SECONDS,
    )


def _row(found: Cost) -> list[str]:
    low_ms, high_ms = found.interval_ms or (float("nan"), float("nan"))
    low, high = found.share_interval or (float("nan"), float("nan"))
    return [
        str(found.pairs),
        f"{found.off_ms:.1f}",
        f"{found.on_ms:.1f}",
        f"{found.difference_ms:+.2f}",
        f"{low_ms:+.2f} to {high_ms:+.2f}",
        f"{100 * found.share:+.2f} %",
        f"{100 * low:+.2f} to {100 * high:+.2f} %",
        found.verdict(),
    ]


def own_time(result: dict[str, Any], warm_up: int) -> tuple[list[float], float]:
    """What telemetry's own code took.

    Args:
        result: Of a rank.
        warm_up: Steps to leave out at the start; half of them have telemetry on.

    Returns:
        Milliseconds of processor time in each step that has telemetry on, and in a whole step
        without, over all ranks.
    """
    parts = [result["own"][part][warm_up // 2 :] for part in PARTS]
    found = cost(result["on"], result["processor"], warm_up)
    return [1e3 * sum(step) for step in zip(*parts, strict=True)], found.off_ms


def _own_row(result: dict[str, Any], warm_up: int) -> list[str]:
    parts = [1e3 * statistics.median(result["own"][part][warm_up // 2 :]) for part in PARTS]
    total, step = own_time(result, warm_up)
    interval = median_interval(total)
    shares = None if interval is None else (interval[0] / step, interval[1] / step)
    low, high = shares or (float("nan"), float("nan"))
    return [
        str(len(total)),
        *(f"{part:.2f}" for part in parts),
        f"{statistics.median(total):.2f}",
        f"{100 * statistics.median(total) / step:.2f} %",
        f"{100 * low:.2f} to {100 * high:.2f} %",
        verdict(shares),
    ]


def _counting(layers: int, experts: int, top_k: int, tokens: int) -> list[str]:
    """Time what `MeasuredRouter` adds to one call."""
    import torch

    from moe_megatron.config import MoEConfig
    from moe_megatron.mcore.measure.counters import RoutingCounters
    from moe_megatron.mcore.measure.routed import Routed, count
    from moe_megatron.routing import bind

    torch.set_num_threads(1)
    row = RoutingCounters(tuple(range(1, layers + 1)), experts, torch.device("cpu")).row(1)
    logits = torch.randn(tokens, experts)
    probs, chosen = logits.softmax(dim=1).topk(top_k)
    routing_map = torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, chosen, True)
    weights = torch.zeros(tokens, experts).scatter_(1, chosen, probs)
    route = bind(MoEConfig(num_experts=experts, top_k=top_k))
    times = []
    for _ in range(200):
        started = time.process_time()
        with torch.no_grad():
            count(row, Routed(logits, weights, routing_map, route=route))
        times.append(1e3 * (time.process_time() - started))
    one = statistics.median(times)
    shape = [str(layers), str(experts), str(top_k), str(tokens)]
    return [*shape, f"{one:.3f}", f"{layers * one:.1f}"]


if __name__ == "__main__":
    main()

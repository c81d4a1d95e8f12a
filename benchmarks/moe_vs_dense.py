"""Validation loss of the MoE preset against its dense twin, after the same number of tokens.

Both have the same active FLOPs per token, corpus, tokenizer, batch, schedule and seed, and run one
after the other. The best learning rate of one is not that of the other, so each may have its own:
`--set demo_moe:training.learning_rate=4e-3`. Run it from the repository root:
`python -m benchmarks.moe_vs_dense --steps 1500`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.ranks import run_ranks
from moe_megatron.config import apply_overrides, load_config

PRESETS = ("demo_moe", "demo_dense")


def main() -> None:
    """Train both presets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--evaluations", type=int, default=10, help="evaluations in each run")
    parser.add_argument("--eval-steps", type=int, default=40, help="batches of an evaluation")
    parser.add_argument("--precision", default=None, help="default: that of the preset")
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="[PRESET:]NAME=VALUE",
        help="overrides of both presets or of one, values as JSON",
    )
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument(
        "--processes", type=int, default=2, help="of each run; 1 does not split the experts"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    overrides: dict[str, Any] = {
        "parallel.expert_parallel_size": arguments.processes,
        "training.train_steps": arguments.steps,
        "training.eval_interval": arguments.steps // arguments.evaluations,
        "training.eval_steps": arguments.eval_steps,
        "training.seed": arguments.seed,
        "checkpoint.save_interval": None,
    }
    if arguments.precision:
        overrides["training.precision"] = arguments.precision
    results = {}
    for preset in arguments.presets:
        own = {**overrides, **_settings(preset, arguments.set)}
        task = {"preset": preset, "overrides": _known(preset, own), "mode": "train"}
        results[preset] = run_ranks(
            "benchmarks.megatron_rank", task, processes=arguments.processes, timeout=36_000
        )
        last = results[preset]["evaluations"][-1]
        print(f"{preset}: {last}", flush=True)
    machine.write(arguments.output, _report(arguments, results))


def _settings(preset: str, words: Sequence[str]) -> dict[str, Any]:
    """The overrides that are meant for a preset; those that name it come after the others."""
    common, own = {}, {}
    for word in words:
        name, _, value = word.partition("=")
        named, _, field = name.rpartition(":")
        if named in ("", preset):
            (own if named else common)[field] = json.loads(value)
    return {**common, **own}


def _known(preset: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Leave settings of experts out of a dense run."""
    if load_config(preset).moe.num_experts is not None:
        return overrides
    of_experts = ("moe.", "parallel.expert_")
    return {name: value for name, value in overrides.items() if not name.startswith(of_experts)}


def _report(arguments: argparse.Namespace, results: dict[str, dict[str, Any]]) -> str:
    curves = {
        preset: {e["step"]: e for e in result["evaluations"] if e["split"] == "validation"}
        for preset, result in results.items()
    }
    steps = {"training.train_steps": arguments.steps}
    config = apply_overrides(
        load_config("demo_moe"), {**steps, **_settings("demo_moe", arguments.set)}
    )
    tokens = config.training.global_batch_size * config.data.sequence_length
    compared = len(results) == len(PRESETS)
    rows = []
    for step in sorted(next(iter(curves.values()))):
        losses = [curve[step]["loss"] for curve in curves.values()]
        minutes = [f"{curve[step]['seconds'] / 60:.1f}" for curve in curves.values()]
        lower = [f"{100 * (1 - losses[0] / losses[1]):.2f} %"] if compared else []
        rows.append(
            [str(step), f"{step * tokens:,}", *(f"{x:.4f}" for x in losses), *lower, *minutes]
        )
    header = [
        "step",
        "tokens",
        *(f"{preset} loss" for preset in results),
        *(["MoE lower by"] if compared else []),
        *(f"{preset} minutes" for preset in results),
    ]
    notes = [
        f"Validation loss in nats per token over {arguments.eval_steps} batches of {tokens} tokens"
        f" that were not trained on; processes, with 1 thread each: {arguments.processes}",
        "Equal active FLOPs: 2 of 8 experts of width 512 against one MLP of width 1024, where --set"
        " does not say otherwise",
    ]
    heading = machine.heading("MoE against dense, equal active FLOPs", notes)
    return "\n".join([heading, machine.table(header, rows)])


if __name__ == "__main__":
    main()

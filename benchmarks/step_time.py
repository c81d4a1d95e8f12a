"""Step time of the main job's model against Hugging Face Mixtral and against its dense twin.

All contenders run at the same time and take turns of a few steps (turns.py), so that what else the
machine does hits all alike, and ratios are those of neighbouring turns. Of the settings of Hugging
Face's, each is run alone first, and the fastest takes part. Run it from the repository root:
`python -m benchmarks.step_time`.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.ranks import Contender, run_ranks
from benchmarks.turns import ring
from moe_megatron.config import load_config

MOE, DENSE = "Megatron MoE", "Megatron dense"
_TRIAL_STEPS = 25
"""Steps of each setting of Hugging Face's, to find the fastest."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train the model."""

    name: str
    module: str
    task: dict[str, Any]
    processes: int = 2
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one contender took, in milliseconds: the median step of each turn."""

    wall: list[float]
    processor: list[float]
    """Over all ranks."""


def main() -> None:
    """Run the contenders and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help="measured turns of each contender")
    parser.add_argument(
        "--steps", type=int, default=10, help="steps of a turn, of which the first is not counted"
    )
    parser.add_argument("--warm-up", type=int, default=3, help="turns before them")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--megatron-only", action="store_true", help="leave transformers out")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    steps = (arguments.warm_up + arguments.turns) * arguments.steps
    tables = []
    for precision in arguments.precisions:
        ways = [
            _way(MOE, "megatron_rank", precision, steps, preset="demo_moe", mode="steps"),
            _way(DENSE, "megatron_rank", precision, steps, preset="demo_dense", mode="steps"),
        ]
        if not arguments.megatron_only:
            ways.append(_fastest_of_hugging_face(precision, steps))
        measured = _measure(ways, arguments)
        tables.append(f"\n## {precision}\n\n{_times(measured)}\n{_ratios(measured)}")
    machine.write(arguments.output, _heading(arguments) + "".join(tables))


def _way(
    name: str,
    module: str,
    precision: str,
    steps: int,
    processes: int = 2,
    threads: int = 1,
    **task: Any,
) -> Way:
    overrides = {
        "training.train_steps": max(steps, _TRIAL_STEPS),
        "training.precision": precision,
        # One evaluation at the end; Megatron has no validation set to build without.
        "training.eval_interval": 10**6,
        "training.eval_steps": 1,
        "checkpoint.save_interval": None,
    }
    return Way(
        name=name,
        module=f"benchmarks.{module}",
        task={"overrides": overrides, "precision": precision, **task},
        processes=processes,
        threads=threads,
    )


def _fastest_of_hugging_face(precision: str, steps: int) -> Way:
    """Each setting alone, for a few steps; returns the one to compare with."""
    trials: list[tuple[float, Way]] = []
    for processes, threads in ((2, 1), (1, 2)):
        for experts in ("eager", "grouped_mm"):
            name = f"HF Mixtral, {experts}, {processes} x {threads}"
            trial, way = (
                _way(name, "hf_rank", precision, count, processes, threads, experts=experts)
                for count in (_TRIAL_STEPS, steps)
            )
            result = run_ranks(trial.module, trial.task, processes=processes, threads=threads)
            median = 1e3 * statistics.median(result["wall"][5:])
            print(f"{precision} {name}, alone: {median:.0f} ms", flush=True)
            trials.append((median, way))
    return min(trials, key=lambda pair: pair[0])[1]


def _measure(ways: Sequence[Way], arguments: argparse.Namespace) -> dict[str, Measured]:
    """Let all take turns."""
    with ring(len(ways), arguments.steps) as seats, ThreadPoolExecutor(len(ways)) as threads:
        contenders = [
            Contender(way.module, way.task, processes=way.processes, threads=way.threads, seat=seat)
            for way, seat in zip(ways, seats, strict=True)
        ]
        try:
            futures = [threads.submit(contender.result) for contender in contenders]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            # After a failure, or Ctrl-C, the others would wait for a turn that never comes.
            for contender in contenders:
                contender.kill()
    return {
        way.name: _by_turn(future.result(), arguments)
        for way, future in zip(ways, futures, strict=True)
    }


def _by_turn(result: Mapping[str, list[float]], arguments: argparse.Namespace) -> Measured:
    def medians(seconds: Sequence[float]) -> list[float]:
        turns = range(arguments.warm_up, arguments.warm_up + arguments.turns)
        return [
            1e3 * statistics.median(seconds[t * arguments.steps : (t + 1) * arguments.steps][1:])
            for t in turns
        ]

    return Measured(wall=medians(result["wall"]), processor=medians(result["processor"]))


def _heading(arguments: argparse.Namespace) -> str:
    preset = load_config("demo_moe")
    batch, length = preset.training.global_batch_size, preset.data.sequence_length
    notes = [
        f"all contenders at once, in turns of {arguments.steps} steps, of which the first is not "
        f"counted: {arguments.warm_up} turns of each, then {arguments.turns} that are measured; "
        f"fresh processes bound to their cores; global batch {batch} x {length} tokens, AdamW, "
        "gradient clipping, load balancing loss",
        "step: median over turns of the turn's median (quartiles); undisturbed: tenth percentile "
        "of the same; processor: median time of all ranks together",
        "ratio: of the two turns that follow each other, median over turns (quartiles)",
        "2 x 1: two processes with one thread each; 1 x 2: one process with two threads; bf16 in "
        "transformers is autocast over fp32 weights",
    ]
    return machine.heading("Step time: Megatron MoE, Hugging Face Mixtral, dense", notes)


def _times(measured: Mapping[str, Measured]) -> str:
    rows = []
    for name, values in measured.items():
        low, middle, high = machine.spread(values.wall)
        rows.append(
            [
                name,
                f"{middle:.0f} ({low:.0f} to {high:.0f})",
                f"{statistics.quantiles(values.wall, n=10, method='inclusive')[0]:.0f}",
                f"{statistics.median(values.processor):.0f}",
            ]
        )
    return machine.table(["contender", "step ms", "undisturbed ms", "processor ms"], rows)


def _ratios(measured: Mapping[str, Measured]) -> str:
    theirs = next((name for name in measured if name.startswith("HF")), None)
    pairs = [(MOE, DENSE), *([(theirs, MOE)] if theirs else [])]
    rows = []
    for above, below in pairs:
        cells = []
        for column in ("wall", "processor"):
            turns = zip(
                getattr(measured[above], column), getattr(measured[below], column), strict=True
            )
            low, middle, high = machine.spread([a / b for a, b in turns])
            cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        rows.append([f"{above} / {below}", *cells])
    return machine.table(["ratio", "step", "processor"], rows)


if __name__ == "__main__":
    main()

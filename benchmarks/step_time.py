"""Step time of the main job's model against Hugging Face Mixtral and against its dense twin.

Every round runs all contenders, each in fresh processes, one after the other, so that what else the
machine does hits all alike; the order rotates from round to round. The Hugging Face contender runs
in several settings in the first round; the fastest of them stays for the others. Run it from the
repository root: `python -m benchmarks.step_time`.
"""

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.ranks import run_ranks
from moe_megatron.config import load_config


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to train the model."""

    name: str
    module: str
    task: dict[str, Any]
    processes: int = 2
    threads: int = 1


@dataclass(kw_only=True)
class Measured:
    """What the rounds of one contender gave, in milliseconds."""

    medians: list[float] = field(default_factory=list)
    """Median step of each round."""
    fastest: list[float] = field(default_factory=list)
    """Tenth percentile of each round: what the machine does when nobody disturbs it."""
    processor: list[float] = field(default_factory=list)
    """Median processor time of a step of each round, over all ranks."""


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="measured steps of each round")
    parser.add_argument("--warm-up", type=int, default=15, help="steps before them")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--megatron-only", action="store_true", help="leave transformers out")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    contenders = [c for p in arguments.precisions for c in _contenders(p, arguments)]
    measured = {contender.name: Measured() for contender in contenders}
    for number in range(arguments.rounds):
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            _measure(contender, measured[contender.name], arguments)
            latest = _latest(measured, contender)
            print(f"round {number + 1}: {contender.name}: {latest}", flush=True)
        if number == 0:
            settings = {name: values.medians[0] for name, values in measured.items()}
            contenders = [c for c in contenders if _stays(c, settings)]
    machine.write(arguments.output, _report(arguments, measured))


def _contenders(precision: str, arguments: argparse.Namespace) -> list[Contender]:
    overrides = {
        "training.train_steps": max(arguments.warm_up + arguments.steps, 25),
        "training.precision": precision,
        # One evaluation at the end; Megatron has no validation set to build without.
        "training.eval_interval": 10**6,
        "training.eval_steps": 1,
        "checkpoint.save_interval": None,
    }
    ours = [
        Contender(
            name=f"{precision} {name}",
            module="benchmarks.megatron_rank",
            task={"preset": preset, "overrides": overrides, "mode": "steps"},
        )
        for name, preset in (("Megatron MoE", "demo_moe"), ("Megatron dense", "demo_dense"))
    ]
    theirs = [
        Contender(
            name=f"{precision} HF Mixtral, {experts}, {processes} x {threads}",
            module="benchmarks.hf_rank",
            task={"overrides": overrides, "experts": experts, "precision": precision},
            processes=processes,
            threads=threads,
        )
        for processes, threads in ((2, 1), (1, 2))
        for experts in ("eager", "grouped_mm")
    ]
    return ours if arguments.megatron_only else ours + theirs


def _stays(contender: Contender, medians: dict[str, float]) -> bool:
    """Whether it is ours, or the fastest setting of Hugging Face in its precision."""
    precision, _, kind = contender.name.partition(" ")
    if not kind.startswith("HF"):
        return True
    rivals = [value for name, value in medians.items() if name.startswith(f"{precision} HF")]
    return medians[contender.name] == min(rivals)


def _measure(contender: Contender, into: Measured, arguments: argparse.Namespace) -> None:
    result = run_ranks(
        contender.module,
        contender.task,
        processes=contender.processes,
        threads=contender.threads,
    )
    wall = [1e3 * seconds for seconds in result["wall"][arguments.warm_up :]]
    into.medians.append(statistics.median(wall))
    into.fastest.append(statistics.quantiles(wall, n=10)[0])
    into.processor.append(1e3 * statistics.median(result["processor"][arguments.warm_up :]))


def _latest(measured: dict[str, Measured], contender: Contender) -> str:
    values = measured[contender.name]
    return (
        f"median {values.medians[-1]:.0f} ms, undisturbed {values.fastest[-1]:.0f} ms, "
        f"processor {values.processor[-1]:.0f} ms"
    )


def _report(arguments: argparse.Namespace, measured: dict[str, Measured]) -> str:
    preset = load_config("demo_moe")
    batch, length = preset.training.global_batch_size, preset.data.sequence_length
    notes = [
        f"{arguments.rounds} rounds; in each every contender ran {arguments.steps} measured steps "
        f"after {arguments.warm_up} others, in fresh processes bound to their cores; global batch "
        f"{batch} x {length} tokens, AdamW, gradient clipping, load balancing loss",
        "step: median over rounds of the round's median (lowest to highest round); undisturbed: "
        "the same of the round's tenth percentile; processor: time of all ranks together",
        "2 x 1: two processes with one thread each; 1 x 2: one process with two threads; bf16 in "
        "transformers is autocast over fp32 weights",
    ]
    rows = []
    for name, values in measured.items():
        low, high = min(values.medians), max(values.medians)
        rows.append(
            [
                name,
                str(len(values.medians)),
                f"{statistics.median(values.medians):.0f} ({low:.0f} to {high:.0f})",
                f"{statistics.median(values.fastest):.0f}",
                f"{statistics.median(values.processor):.0f}",
            ]
        )
    times = machine.table(
        ["contender", "rounds", "step ms", "undisturbed ms", "processor ms"], rows
    )
    ratios = machine.table(
        ["precision", "ratio", "step", "undisturbed", "processor"],
        [row for p in arguments.precisions for row in _ratios(p, measured)],
    )
    text = machine.heading("Step time: Megatron MoE, Hugging Face Mixtral, dense", notes)
    return f"{text}\n{times}\n{ratios}"


def _ratios(precision: str, measured: dict[str, Measured]) -> list[list[str]]:
    def value(name: str, column: str) -> float:
        return statistics.median(getattr(measured[name], column))

    columns = ("medians", "fastest", "processor")
    theirs = [
        name
        for name, values in measured.items()
        if name.startswith(f"{precision} HF")
        and len(values.medians) == max(len(m.medians) for m in measured.values())
    ]
    ours, dense = f"{precision} Megatron MoE", f"{precision} Megatron dense"
    rows = [
        [
            precision,
            "Megatron MoE / Megatron dense",
            *(f"{value(ours, c) / value(dense, c):.3f}" for c in columns),
        ]
    ]
    if theirs:
        best = {c: min(value(name, c) for name in theirs) for c in columns}
        ratios = (f"{best[c] / value(ours, c):.2f}" for c in columns)
        rows.append([precision, "fastest HF Mixtral / Megatron MoE", *ratios])
    return rows


if __name__ == "__main__":
    main()

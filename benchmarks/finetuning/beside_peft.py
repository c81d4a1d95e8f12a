"""The third stage: the same adapters on the same rows here and in `peft`, in turns."""

import operator
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.finetuning.kept import kept
from benchmarks.finetuning.material import Material
from benchmarks.finetuning.profiles import Profile
from benchmarks.process_memory import Sampler
from benchmarks.ranks import Contender, run_ranks
from benchmarks.turns import ring

OURS, THEIRS = "ours", "peft"
_MODULES = {OURS: "benchmarks.finetuning.our_rank", THEIRS: "benchmarks.finetuning.peft_rank"}
_EXPERTS = ("eager", "grouped_mm")
"""How transformers computes experts."""
_RATE, _LOWEST = 1e-3, 1e-4
_BETAS, _EPS, _CLIP = (0.9, 0.95), 1e-8, 1.0
_EVERY = 0.2
PRECISIONS = ("fp32", "bf16")
_SAME_TYPES = {
    "fp32": "",
    "bf16": "On both sides all weights are bf16, those of adapters too, and the optimizer has the "
    "adapters in fp32, which it rounds after each step; losses are computed in fp32. Logits of "
    "routers are fp32 here and bf16 there, so that a few tokens visit other experts. ",
}
"""What is of which type, where it is not all one."""


def section(
    profile: Profile, material: Material, work: Path, *, threads: int, precision: str = "fp32"
) -> str:
    """Run what is not there yet; returns the tables."""
    name = f"beside-peft-{precision}"
    folder = work / name
    folder.mkdir(exist_ok=True)
    tasks = _tasks(profile, material, folder, precision)
    trials = _trials(profile, tasks, work, name, threads)
    title = f"## Beside peft, {precision}"
    there = {experts: it for experts, it in trials.items() if "wall" in it}
    if not there:
        return f"{title}\n\nfailed: {next(iter(trials.values()))['error']}\n"
    fastest = min(there, key=lambda it: _later(there[it]["wall"], 1))
    tasks[THEIRS] = {**tasks[THEIRS], "experts": fastest}
    asked = {"tasks": tasks, "threads": threads}
    both = kept(work, name, asked, lambda: _in_turns(tasks, threads))
    if "error" in both:
        return f"{title}\n\nfailed: {both['error']}\n"
    parts = [
        title,
        _about(profile, there, fastest, threads, precision),
        _table(profile, both),
        _losses(both),
        _reading(profile, both),
    ]
    return "\n\n".join(it.strip() for it in parts) + "\n"


def _tasks(
    profile: Profile, material: Material, folder: Path, precision: str
) -> dict[str, dict[str, Any]]:
    """What each side does."""
    overrides = {
        "checkpoint.load": str(material.megatron),
        "checkpoint.save_interval": None,
        "run_dir": str(folder / "run"),
        "data.paths": [str(material.long)],
        "data.format": "messages",
        "data.tokenizer": str(material.hf),
        "data.split": "100,0,0",
        "data.sequence_length": profile.length,
        "training.precision": precision,
        "training.train_steps": profile.peft_steps,
        "training.warmup_steps": 0,
        "training.learning_rate": _RATE,
        "training.min_learning_rate": _LOWEST,
        "training.decay_style": "cosine",
        "training.weight_decay": 0.0,
        "training.clip_grad": _CLIP,
        "training.adam_beta1": _BETAS[0],
        "training.adam_beta2": _BETAS[1],
        "training.eval_interval": None,
        "training.micro_batch_size": profile.batch,
        "training.global_batch_size": profile.batch,
        "moe.aux_loss_coef": 0.0,
        "moe.z_loss_coef": 0.0,
        "adapter.rank": profile.rank,
        "adapter.targets": ["experts", "*.self_attention.linear_proj.weight"],
        "telemetry.console": False,
    }
    theirs = {
        "model": str(material.hf),
        "precision": precision,
        "experts": _EXPERTS[0],
        "steps": profile.peft_steps,
        "decay_steps": profile.peft_steps,
        "learning_rate": _RATE,
        "min_learning_rate": _LOWEST,
        "betas": _BETAS,
        "eps": _EPS,
        "clip_grad": _CLIP,
    }
    return {
        OURS: {"folder": str(folder), "overrides": overrides},
        THEIRS: {"folder": str(folder), **theirs},
    }


def _trials(
    profile: Profile,
    tasks: Mapping[str, Mapping[str, Any]],
    work: Path,
    name: str,
    threads: int,
) -> dict[str, dict[str, Any]]:
    """Each way to compute experts, alone for a few steps, after our side has made the rows."""
    steps = profile.trial_steps
    ours = {
        **tasks[OURS],
        "overrides": {**tasks[OURS]["overrides"], "training.train_steps": steps},
    }

    def alone(side: str, what: str, task: Mapping[str, Any]) -> dict[str, Any]:
        return kept(
            work,
            f"{name}-{what}",
            {**task, "threads": threads},
            lambda: run_ranks(_MODULES[side], task, processes=1, threads=threads),
        )

    begun = alone(OURS, "rows", ours)
    if "error" in begun:
        return {OURS: begun}
    return {
        it: alone(THEIRS, f"trial-{it}", {**tasks[THEIRS], "experts": it, "steps": steps})
        for it in _EXPERTS
    }


def _in_turns(tasks: Mapping[str, Mapping[str, Any]], threads: int) -> dict[str, Any]:
    """Both at the same time, of which one works; a turn is a step."""
    with (
        ring(len(tasks), 1) as seats,
        ThreadPoolExecutor(len(tasks)) as pool,
        ExitStack() as stack,
    ):
        sides = {
            side: Contender(_MODULES[side], task, processes=1, threads=threads, seat=seat)
            for (side, task), seat in zip(tasks.items(), seats, strict=True)
        }
        memory = {
            side: stack.enter_context(Sampler(_EVERY, it.processes)) for side, it in sides.items()
        }
        try:
            futures = {side: pool.submit(it.result) for side, it in sides.items()}
            done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            # After a failure the other would wait for a turn that never comes.
            for contender in sides.values():
                contender.kill()
        found = {side: future.result() for side, future in futures.items()}
    for side, result in found.items():
        result["peak_bytes"] = memory[side].peaks(result["begins"])["steps"]
    return found


def _about(
    profile: Profile,
    trials: Mapping[str, Mapping[str, Any]],
    fastest: str,
    threads: int,
    precision: str,
) -> str:
    times = ", ".join(f"{name} {_later(it['wall'], 1):.2f} s" for name, it in trials.items())
    return (
        f"The same model in {precision} with adapters of rank {profile.rank} on all experts and on "
        f"the output matrix of attention, {profile.peft_steps} steps of {profile.batch} "
        f"conversations of up to {profile.length} tokens, which here stand one after another, and "
        f"there are padded to the longest of a step; {threads} thread(s) each. AdamW without "
        f"weight decay, gradients clipped at {_CLIP:g}, learning rate "
        f"{_RATE:g} along a cosine to {_LOWEST:g}. {_SAME_TYPES[precision]}Both sides are there "
        f"at the same time and take turns, step by step; the first {profile.left_out} steps are "
        "left out of the times. "
        f"Transformers computes experts by `{fastest}`, which was the fastest alone ({times})."
    )


def _table(profile: Profile, both: Mapping[str, Mapping[str, Any]]) -> str:
    header = ("", "step s (quartiles)", "processor s", "tokens/s", "peak GiB")
    tokens = both[OURS]["tokens"]  # both sides learn from the same
    rows = []
    for side, result in both.items():
        speeds = list(map(operator.truediv, tokens, result["wall"]))
        low, middle, high = machine.spread(result["wall"][profile.left_out :])
        rows.append(
            [
                side,
                f"{middle:.2f} ({low:.2f} to {high:.2f})",
                f"{_later(result['processor'], profile.left_out):.2f}",
                f"{_later(speeds, profile.left_out):.0f}",
                f"{result['peak_bytes'] / 2**30:.2f}",
            ]
        )
    low, middle, high = machine.spread(_ratios(profile, both, "wall"))
    processor = statistics.median(_ratios(profile, both, "processor"))
    memory = both[THEIRS]["peak_bytes"] / max(1, both[OURS]["peak_bytes"])
    ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    inverse = f"{1 / middle:.2f}"
    rows.append([f"{THEIRS} / {OURS}", ratio, f"{processor:.2f}", inverse, f"{memory:.2f}"])
    return machine.table(header, rows)


def _losses(both: Mapping[str, Mapping[str, Any]]) -> str:
    ours, theirs = both[OURS], both[THEIRS]
    rows = [
        [str(step), f"{rate:.2e}", f"{a:.6f}", f"{b:.6f}", f"{a - b:+.1e}"]
        for step, (rate, a, b) in enumerate(
            zip(theirs["learning_rates"], ours["losses"], theirs["losses"], strict=True), start=1
        )
    ]
    return machine.table(("step", "learning rate", OURS, THEIRS, "difference"), rows)


def _reading(profile: Profile, both: Mapping[str, Mapping[str, Any]]) -> str:
    """Sentences made of nothing but the numbers."""
    ours, theirs = both[OURS], both[THEIRS]

    def apart(a: Sequence[float], b: Sequence[float]) -> float:
        return max(abs(x - y) for x, y in zip(a, b, strict=True))

    # Megatron reports the rate when it has set that of the next step.
    rates = apart(ours["learning_rates"][:-1], theirs["learning_rates"][1:])
    ratio = statistics.median(_ratios(profile, both, "wall"))
    return (
        f"Losses of a step differ by {apart(ours['losses'], theirs['losses']):.1e} at most, "
        f"learning rates by {rates:.1e}. A step of {THEIRS} takes {ratio:.2f} times as long as "
        f"ours, in the median over {len(ours['wall']) - profile.left_out} pairs of neighbouring "
        f"steps, and its process {theirs['peak_bytes'] / max(1, ours['peak_bytes']):.2f} times "
        "the memory."
    )


def _ratios(profile: Profile, both: Mapping[str, Mapping[str, Any]], name: str) -> list[float]:
    """Theirs by ours, of each pair of steps that follow each other."""
    pairs = zip(both[THEIRS][name], both[OURS][name], strict=True)
    return [theirs / ours for theirs, ours in pairs][profile.left_out :]


def _later(values: Sequence[float], left_out: int) -> float:
    return statistics.median(values[left_out:])

"""The first stage: full fine-tuning, forms of LoRA, ESFT, MoE-Sieve and QLoRA, one process each."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.finetuning.kept import kept
from benchmarks.finetuning.material import Material
from benchmarks.finetuning.profiles import Profile
from benchmarks.process_memory import Sampler
from benchmarks.ranks import run_ranks

_ALPHA = 6.0
_LORA, _WHOLE = 1e-3, 5e-5
"""Learning rates: adapters begin at zero and need larger steps than weights."""
_EVERY = 0.2
"""Seconds between two looks at the memory."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to tune."""

    name: str
    trains: str
    """In words."""
    task: Mapping[str, Any]
    learning_rate: float | None = None
    seeded: bool = field(default=False)
    """Whether it is run with more than one seed."""


def _lora(name: str, trains: str, sharing: str = "own", **task: Any) -> Method:
    return Method(
        name=name,
        trains=f"adapters of attention and {trains}",
        task={"kind": "lora", "sharing": sharing, "alpha": _ALPHA, **task},
        learning_rate=_LORA,
        seeded=name in _SEEDED,
    )


_ALL, _TOP, _RANDOM = "LoRA, own", "MoE-Sieve, top 25 %", "LoRA, random 25 %"
_SEEDED = (_ALL, _TOP, _RANDOM)
_BASE, _FULL, _QLORA, _ESFT = "base", "full", "QLoRA, nf4", "ESFT, share 0.2"
_SHARED = "LoRA, shared"
METHODS = (
    Method(name=_BASE, trains="nothing", task={"kind": "base"}),
    Method(
        name=_FULL,
        trains="attention, all experts",
        task={"kind": "tune", "train_parts": ["experts", "attention"]},
        learning_rate=_WHOLE,
    ),
    _lora(_ALL, "all experts, one each"),
    _lora(_SHARED, "experts, one for all of a layer", "shared"),
    _lora("LoRA, shared A", "experts, one A for all of a layer", "shared_a"),
    _lora(_TOP, "the most used expert of four", experts="top:25%"),
    _lora(_RANDOM, "a random expert of four", experts="random", part=0.25),
    Method(
        name=_ESFT,
        trains="the experts with a fifth of the tokens",
        task={"kind": "tune", "train_parts": ["experts"], "share": 0.2},
        learning_rate=_WHOLE,
    ),
    _lora(_QLORA, "all experts, whose base has four bits", qlora=True),
)


def section(profile: Profile, material: Material, work: Path, *, seeds: int, threads: int) -> str:
    """Run what is not there yet; returns the tables."""
    found = {it.name: _run(it, profile, material, work, seed=1, threads=threads) for it in METHODS}
    again = {
        it.name: [found[it.name]]
        + [
            _run(it, profile, material, work, seed=seed, threads=threads)
            for seed in range(2, seeds + 1)
        ]
        for it in METHODS
        if it.seeded
    }
    parts = [
        "## Methods on the same data and steps",
        _about(profile, found, threads),
        _table(profile, found),
        _reading(profile, found),
    ]
    if seeds > 1:
        parts += [
            "### Adapters for some experts, by seed",
            _seed_table(again),
            _seed_reading(again),
        ]
    return "\n\n".join(it.strip() for it in parts) + "\n"


def _run(
    method: Method, profile: Profile, material: Material, work: Path, *, seed: int, threads: int
) -> dict[str, Any]:
    task = {
        **method.task,
        "learning_rate": method.learning_rate,
        "model": str(material.megatron),
        "train": str(material.train),
        "held_out": str(material.held_out),
        "seed": seed,
        "precision": profile.precision,
        "rank": profile.rank,
        "length": profile.length,
        "batch": profile.batch,
        "steps": profile.steps,
        "calibration": profile.calibration,
    }
    words = "".join(it if it.isalnum() else " " for it in method.name.lower()).split()

    def make() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder, Sampler(_EVERY) as sampler:
            told = {**task, "folder": folder}
            result = run_ranks(
                "benchmarks.finetuning.method_rank", told, processes=1, threads=threads
            )
        if ends := result.get("ends"):
            # From the second step on the optimizer has its states; tiny steps have no sample.
            begin = ends[0] - result["seconds"][0]
            peaks = sampler.peaks([("first", begin), ("steps", ends[0]), ("", ends[-1])])
            result["peak_bytes"] = peaks["steps"] or peaks["first"]
        return result

    name = f"method-{'-'.join(words)}-seed{seed}"
    return kept(work, name, {**task, "threads": threads}, make)


def _about(profile: Profile, found: Mapping[str, Mapping[str, Any]], threads: int) -> str:
    tokens = next((it["tokens"] for it in found.values() if "tokens" in it), 0)
    judged = found[_BASE].get("held_out_tokens", 0)
    return (
        f"{profile.steps} steps of {tokens:,} tokens ({profile.batch} rows of {profile.length}, "
        f"padding included) in {profile.precision}, one process of {threads} thread(s) each; "
        "cosine to a tenth of the learning rate, AdamW without weight decay, routers frozen and "
        f"without an auxiliary loss. Adapters have rank {profile.rank} and scale {_ALPHA:g} / "
        "sqrt(rank); where experts share, the rank is raised to train as many numbers. Step times "
        f"leave out the first {profile.left_out}; memory is the peak of the process during "
        f"the steps; the held-out loss is over {judged:,} tokens of the answers to "
        f"{profile.held_out} questions. What `nf4` rounds is rounded in training alone: "
        "it is judged on the whole base."
    )


def _table(profile: Profile, found: Mapping[str, Mapping[str, Any]]) -> str:
    header = (
        *("method", "trains", "rank of experts", "trained", "learning rate", "step s"),
        *("undisturbed s", "peak GiB", "training loss", "held-out loss"),
    )
    rows = []
    for method in METHODS:
        result = found[method.name]
        if "error" in result:
            rows.append([method.name, f"failed: {result['error']}", *[""] * 8])
            continue
        held_out = f"{result['held_out_loss']:.3f}"
        if "seconds" not in result:
            rows.append([method.name, method.trains, *[""] * 7, held_out])
            continue
        share = result["trained"] / result["parameters"]
        losses = result["losses"]
        rows.append(
            [
                *(method.name, method.trains, str(result.get("rank_of_experts", ""))),
                f"{result['trained']:,} ({share:.2%})",
                f"{method.learning_rate:g}",
                f"{_median(profile, result):.2f}",
                f"{_undisturbed(profile, result):.2f}",
                f"{_gib(result):.2f}",
                f"{losses[0]:.3f} to {losses[-1]:.3f}",
                held_out,
            ]
        )
    return machine.table(header, rows)


def _reading(profile: Profile, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Sentences made of nothing but the numbers."""
    there = {name: it for name, it in found.items() if "seconds" in it}
    said = []
    if {_FULL, _ALL} <= there.keys():
        full, own = there[_FULL], there[_ALL]
        said.append(
            f"Own adapters train {own['trained'] / full['trained']:.2%} of the numbers of full "
            f"fine-tuning, take {_median(profile, own) / _median(profile, full):.2f} of the time "
            f"of its step and {_part(_gib(own), _gib(full))} of its memory."
        )
    if {_ALL, _QLORA} <= there.keys():
        own, small = there[_ALL], there[_QLORA]
        said.append(
            f"With experts in four bits these adapters need {_part(_gib(small), _gib(own))} of the "
            f"memory and {_median(profile, small) / _median(profile, own):.2f} of the time."
        )
    if there and "held_out_loss" in found[_BASE]:
        order = sorted(there, key=lambda name: there[name]["held_out_loss"])
        losses = [f"{name} {there[name]['held_out_loss']:.3f}" for name in order]
        said.append(
            f"Held-out losses, which are {found[_BASE]['held_out_loss']:.3f} before, lowest first: "
            f"{'; '.join(losses)}."
        )
    return " ".join(said)


def _seed_table(again: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    number = max(map(len, again.values()))
    header = ("adapters", *(f"seed {it}" for it in range(1, number + 1)), "mean", "trained")
    rows = []
    for name, results in again.items():
        losses = [it.get("held_out_loss") for it in results]
        cells = ["failed" if it is None else f"{it:.3f}" for it in losses]
        there = [it for it in losses if it is not None]
        mean = f"{statistics.mean(there):.3f}" if there else ""
        rows.append([name, *cells, mean, f"{results[0].get('trained', 0):,}"])
    return machine.table(header, rows)


def _seed_reading(again: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    pairs = list(zip(again[_TOP], again[_RANDOM], strict=True))
    both = [
        second["held_out_loss"] - first["held_out_loss"]
        for first, second in pairs
        if "held_out_loss" in first and "held_out_loss" in second
    ]
    if not both:
        return ""
    return (
        "A seed decides the order of the data, the first A and which experts are the random ones. "
        f"Minus the loss with the most used experts, that with random ones is "
        f"{statistics.mean(both):+.3f} in the mean, from {min(both):+.3f} to {max(both):+.3f}."
    )


def _counted(profile: Profile, result: Mapping[str, Any]) -> list[float]:
    return list(result["seconds"][profile.left_out :])


def _median(profile: Profile, result: Mapping[str, Any]) -> float:
    return statistics.median(_counted(profile, result))


def _undisturbed(profile: Profile, result: Mapping[str, Any]) -> float:
    """The tenth percentile."""
    return statistics.quantiles(_counted(profile, result), n=10, method="inclusive")[0]


def _part(some: float, of: float) -> str:
    """A ratio; "an unknown part" of what was too little to be measured, as of tiny models."""
    return f"{some / of:.2f}" if of else "an unknown part"


def _gib(result: Mapping[str, Any]) -> float:
    return float(result["peak_bytes"]) / 2**30

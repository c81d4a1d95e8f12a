"""The second stage: the same training under each layout, step by step against one process, in fp32.

A small model with random weights trains in full, and with adapters on the same weights. Each layout
gets the same seeds, and with them the same weights, adapters and rows.

Sums in another order round otherwise, in the last bit. That stays as small as it is until a token
whose two best experts are nearly equal is sent to the other one; from there on curves part, as they
would for any other reason. So the table says through which step all experts of all layers had the
same tokens as in one process, and how far losses were apart until then.
"""

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.finetuning.kept import kept
from benchmarks.finetuning.profiles import Profile
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.data.source import resolve_blend
from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE, read_routing
from moe_megatron.testing.jobs import Job, run_jobs, step_records

ALONE = "one process"
LAYOUTS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    ALONE: (1, {}),
    "EP1, two copies": (2, {}),
    "EP2": (2, {"parallel.expert_parallel_size": 2}),
    "TP2": (2, {"parallel.tensor_parallel_size": 2}),
    "PP2": (2, {"parallel.pipeline_parallel_size": 2}),
}
"""Processes, and the sizes that are not 1."""
_ADAPTERS = {"adapter.rank": 4, "training.learning_rate": 1e-2}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "full": {"training.learning_rate": 1e-3},
    "LoRA, own": _ADAPTERS,
    "LoRA, shared A": {**_ADAPTERS, "adapter.experts": "shared_a"},
}
_TRAINING: Mapping[str, Any] = {
    "training.warmup_steps": 0,
    "training.min_learning_rate": 0.0,
    "training.weight_decay": 0.0,
    "training.precision": "fp32",
    "training.eval_interval": None,
    "checkpoint.save_interval": None,
    "telemetry.console": False,
}


def section(profile: Profile, work: Path) -> str:
    """Run what is not there yet; returns the tables."""
    title = "## Curves under layouts"
    found = {layout: _run(profile, work, layout) for layout in LAYOUTS}
    alone = found[ALONE]
    if "error" in alone:
        return f"{title}\n\nfailed: {alone['error']}\n"
    parts = [title, _about(profile), _table(found), _reading(found)]
    return "\n\n".join(it.strip() for it in parts) + "\n"


def _run(profile: Profile, work: Path, layout: str) -> dict[str, Any]:
    """Losses, and tokens of every expert, of each step of each kind of training, by its name."""
    processes, sizes = LAYOUTS[layout]
    folder = work / "curves" / layout.replace(" ", "-")
    overrides = {
        **profile.curves,
        **_TRAINING,
        "training.train_steps": profile.curve_steps,
        **sizes,
    }

    def make() -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        data = _data(profile, overrides)
        jobs = [
            Job(
                run_dir=folder / str(number),
                preset=profile.curve_preset,
                overrides={**overrides, **changes},
                data=data,
            )
            for number, changes in enumerate(KINDS.values())
        ]
        run_jobs(jobs, world_size=processes, timeout=900)
        return {
            kind: {
                "losses": [it.loss for it in step_records(job.run_dir)],
                "counts": [
                    it.tokens_per_expert.tolist() for it in read_routing(job.run_dir / ROUTING_FILE)
                ],
            }
            for kind, job in zip(KINDS, jobs, strict=True)
        }

    task = {"preset": profile.curve_preset, "overrides": overrides, "text": profile.curve_text}
    name = "curves-" + "".join(it for it in layout.lower() if it.isalnum())
    return kept(work, name, {**task, "kinds": KINDS, "processes": processes}, make)


def _data(profile: Profile, overrides: Mapping[str, Any]) -> Path | None:
    """The prepared text; None: Megatron's mock data."""
    if profile.curve_text is None:
        return None
    named = {**overrides, "data.paths": [profile.curve_text]}
    config = apply_overrides(load_config(profile.curve_preset), named)
    (prefix,) = resolve_blend(config.data, open_indexed_dataset, progress=False).prefixes
    return Path(prefix)


def _about(profile: Profile) -> str:
    config = load_config(profile.curve_preset)
    text = profile.curve_text or "Megatron's mock data"
    return (
        f"The preset `{profile.curve_preset}` ({config.model.num_layers} layers, "
        f"{config.moe.num_experts} experts) from random weights, {profile.curve_steps} steps on "
        f"{text} in fp32, one thread a process. Adapters have rank {_ADAPTERS['adapter.rank']} "
        "and are on attention and experts."
    )


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    header = (
        "training",
        "layout",
        "first loss",
        "last loss",
        "same experts through step",
        "apart until then",
        "apart at most",
    )
    rows = []
    for kind, layout in itertools.product(KINDS, found):
        result = found[layout]
        if "error" in result:
            rows.append([kind, layout, f"failed: {result['error']}", *[""] * 4])
            continue
        losses = result[kind]["losses"]
        row = [kind, layout, f"{losses[0]:.6f}", f"{losses[-1]:.6f}"]
        if layout == ALONE:
            rows.append([*row, "", "", ""])
        else:
            it = _Apart.of(result[kind], found[ALONE][kind])
            rows.append([*row, str(it.same_through), f"{it.until:.1e}", f"{it.most:.1e}"])
    return machine.table(header, rows)


def _reading(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Sentences made of nothing but the numbers."""
    curves = {
        (kind, layout): _Apart.of(result[kind], found[ALONE][kind])
        for layout, result in found.items()
        for kind in KINDS
        if layout != ALONE and "error" not in result
    }
    if not curves:
        return ""
    (kind, layout), farthest = max(curves.items(), key=lambda it: it[1].until)
    steps = len(found[ALONE][kind]["losses"])
    whole = sum(it.same_through == steps for it in curves.values())
    text = (
        f"While every expert has the tokens that it has in one process, losses of a step differ by "
        f"{farthest.until:.1e} at most ({kind} under {layout}); in {whole} of {len(curves)} curves "
        f"that is all {steps} steps."
    )
    if whole == len(curves):
        return text
    most = max(it.most for it in curves.values())
    return f"{text} After a token has gone to another expert they differ by {most:.1e} at most."


@dataclass(frozen=True, kw_only=True)
class _Apart:
    """How far a curve is from that of one process."""

    same_through: int
    """The last step through which every expert had as many tokens."""
    until: float
    """The largest difference of a loss through that step."""
    most: float

    @classmethod
    def of(cls, one: Mapping[str, Any], other: Mapping[str, Any]) -> "_Apart":
        differences = [abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True)]
        same = [a == b for a, b in zip(one["counts"], other["counts"], strict=True)]
        through = same.index(False) if False in same else len(same)
        return cls(
            same_through=through,
            until=max(differences[:through], default=0.0),
            most=max(differences),
        )

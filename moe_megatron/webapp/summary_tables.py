"""The tables of a summary: what routers did, which experts are dead, and what became of tasks.

A table is a title, what it says, names of columns and rows of text. It does not know how it is
drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.telemetry.values.forgetting import COLUMNS, Forgetting, forgetting
from moe_megatron.telemetry.values.json_fields import Int64Array
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.recent_use import RECENT_STEPS
from moe_megatron.webapp.layer_quantities import (
    DROPPED,
    IMBALANCE,
    measured_quantities,
    varied_choice,
)
from moe_megatron.webapp.run_reader import RunReader

_MOST_NAMED = 40
"""Dead experts of a layer whose numbers are listed."""


def _table(
    title: str, says: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> dict[str, Any]:
    return {"title": title, "says": says, "columns": list(columns), "rows": [*map(list, rows)]}


def routers_table(run: RunReader, whole: RoutingProfile) -> dict[str, Any]:
    """Each quantity of layers at the start and at the end: mean, and the layers farthest from it.

    Args:
        run: The run.
        whole: Its routing from the first step to the last.
    """
    first, last = run.windows.first_step, run.windows.last_step
    each = max(1, min(RECENT_STEPS, (last - first + 1) // 4))
    start = run.windows.profile(first, first + each - 1)
    end = run.windows.profile(last - each + 1, last)
    shown = [
        IMBALANCE,
        *measured_quantities(run.windows.quantities),
        *filter(None, [varied_choice([whole])]),
        *([DROPPED] if whole.dropped.any() else []),
    ]
    rows = []
    for it in shown:
        at_end = it.values(end)
        means = (_written(_mean(values)) for values in (it.values(start), at_end))
        ends = (_extreme(at_end, whole.layers, lowest) for lowest in (True, False))
        rows.append([it.title, *means, *ends, it.note])
    steps = "step" if each == 1 else f"{each} steps"
    return _table(
        "Routers",
        f"Means over layers in the first and in the last {steps}, and the layers where the last "
        "is lowest and highest.",
        ("measure", "first", "last", "lowest", "highest", "how to read it"),
        rows,
    )


def _mean(values: Float64Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _extreme(values: Float64Array, layers: Sequence[int], lowest: bool) -> str:
    if not np.isfinite(values).any():
        return "-"
    place = int(np.nanargmin(values) if lowest else np.nanargmax(values))
    return f"{_written(values[place])} (layer {layers[place]})"


def _written(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "-"


def dead_table(run: RunReader, whole: RoutingProfile) -> dict[str, Any]:
    """The experts that no token has reached of late, by layer."""
    last = run.windows.last_step
    recent = run.windows.profile(last - RECENT_STEPS + 1, last)
    counts = recent.tokens_per_expert
    mask = (counts == 0) & counts.any(axis=1, keepdims=True)
    span = f"steps {recent.first_step or 0:,} to {recent.last_step or 0:,}"
    rows = []
    for row, layer in enumerate(whole.layers):
        dead = np.flatnonzero(mask[row])
        if dead.size:
            shown = ", ".join(map(str, dead[:_MOST_NAMED].tolist()))
            more = ", ..." if dead.size > _MOST_NAMED else ""
            highest = whole.relative_load[row, dead].max()
            counted = f"{dead.size} of {whole.num_experts}"
            rows.append([str(layer), counted, f"{highest:.2f}x", shown + more])
    says = f"None: every expert received tokens in {span}."
    if rows:
        says = f"Experts that received no token in {span}."
    columns = ("layer", "dead", "their highest load, whole run", "experts")
    return _table("Dead experts", says, columns, rows)


def tasks_tables(run: RunReader) -> list[dict[str, Any]]:
    """What the training did to each named task, and which expert serves it; [] without tasks."""
    found = forgetting(run.steps.evaluations)
    tables = [] if found is None else [_before_and_after(found)]
    profile, newest = run.profile, run.windows.newest
    if profile is not None and profile.by_task:
        tables.append(own_experts(profile.layers, profile.by_task))
    elif newest is not None and newest.by_task:
        tables.append(own_experts(newest.layers, newest.by_task))
    return tables


def _before_and_after(found: Forgetting) -> dict[str, Any]:
    says = (
        f"Held-out rows of each task at step {found.first.step:,} and step {found.last.step:,}; "
        "what is kept are the experts of a token, on average over layers and in the layer where "
        "it is least."
    )
    return _table("Tasks", says, COLUMNS, found.rows)


def own_experts(layers: Sequence[int], by_task: Mapping[str, Int64Array]) -> dict[str, Any]:
    """For each task, the expert that serves it most above its share of all tasks.

    Args:
        layers: Numbers of the layers.
        by_task: Assignments of each task that reached each expert. [L, E]
    """
    total = np.sum([*by_task.values()], axis=0)
    of_all = _shares(total)
    rows = []
    for name, counts in by_task.items():
        share = _shares(counts)
        row, expert = np.unravel_index(np.argmax(share - of_all), share.shape)
        rows.append(
            (
                name,
                f"{counts.sum() / max(1, total.sum()):.1%}",
                f"layer {layers[int(row)]}, expert {expert}",
                f"{share[row, expert]:.1%}",
                f"{of_all[row, expert]:.1%}",
            )
        )
    return _table(
        "Experts of tasks",
        "Which expert a task uses most beyond what all tasks together do, and which part of the "
        "layer's assignments it gets.",
        ("task", "part of all assignments", "most its own", "of the task", "of all tasks"),
        rows,
    )


def _shares(counts: Int64Array) -> Float64Array:
    """Each expert's part of its layer. [L, E]"""
    return counts / np.maximum(1, counts.sum(axis=1, keepdims=True))

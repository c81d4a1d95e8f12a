"""Answers about single experts: one of them, which moved most, and the processes they are on."""

from typing import Any

import numpy as np

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.json_values import nested, nullable
from moe_megatron.webapp.over_time import routed_columns
from moe_megatron.webapp.partners import partners_of
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.run_samples import summed_together

_MOVES = 100
_PARTNERS = 32
_COMPARED_STEPS = 50
"""Steps over which the load is taken before and after: of one step it is mostly chance."""


def expert(run: RunReader, asked: Asked) -> dict[str, Any]:
    """One expert over steps: its load over the fair share, its bias, and what it is used for."""
    shape = run.windows.shape
    layer, number = asked.whole("layer", None, 1), asked.whole("expert", None)
    if shape is None or layer not in shape.layers or number >= shape.num_experts:
        known = "" if shape is None else f"layers {', '.join(map(str, shape.layers))}"
        raise DataError(
            f"there is no expert {number} in layer {layer}; this run has "
            + (f"{known} with experts 0 to {shape.num_experts - 1}." if shape else "no routing.")
        )
    row = shape.layers.index(layer)
    columns = routed_columns(run, asked)
    ranks = run.expert_ranks()
    spans = [span for span, _ in columns]
    bias = run.samples.bias(spans, shape)
    domains = _domains(run, layer, number)
    return {
        "steps": spans,
        "load": nested(np.array([it.relative_load[row, number] for _, it in columns])),
        # Tokens are dropped by a full expert, but counted by layer.
        "drop_rate": nested(np.array([it.drop_rate[row] for _, it in columns])),
        "bias": [] if bias is None else nested(bias[:, row, number]),
        "ep_rank": ranks[row][number] if ranks else None,
        "partners": _partners(run, asked, row, number),
        **_tokens(run, asked, row, number),
        "domains": domains,
        "domains_note": "" if domains else _why_no_domains(run),
    }


def _partners(run: RunReader, asked: Asked, row: int, number: int) -> list[dict[str, Any]]:
    """The experts of the layer that tokens have beside this one."""
    shape = run.windows.shape
    assert shape is not None
    paths = [path for path, _ in run.samples.newest(asked.window(run.span), shape)]
    (table,) = summed_together(paths, (shape.layers[row],), shape.num_experts)
    found = partners_of(table, _PARTNERS)
    return [
        {"expert": other, "share": nullable(share), "null_share": nullable(null_share)}
        for other, share, null_share in zip(
            found.expert[number].tolist(),
            found.share[number].tolist(),
            found.null_share[number].tolist(),
            strict=True,
        )
        if share > 0
    ]


def _tokens(run: RunReader, asked: Asked, row: int, number: int) -> dict[str, Any]:
    """The expert's most frequent tokens, where they may be shown: not even ids are sent elsewhere.

    Each with its share of the expert's assignments, and of those of the whole layer.
    """
    shape = run.windows.shape
    assert shape is not None
    layer = shape.layers[row]
    found = (
        run.samples.top_tokens(asked.window(run.span), shape, layer) if run.show_tokens else None
    )
    if found is None:
        return {"tokens": [], "tokens_step": None}
    step, top = found
    ids = [it for it in top.ids[number].tolist() if it >= 0]
    mine, of_layer = int(top.assigned[number]), int(top.assigned.sum(dtype=np.int64))
    shares = [
        (count / mine if mine else np.nan, everywhere / of_layer if of_layer else np.nan)
        for count, everywhere in zip(
            top.counts[number].tolist(), top.in_layer[number].tolist(), strict=True
        )
    ]
    texts = run.token_texts.of(ids, run.checkpoints.values())
    return {
        "tokens_step": step,
        "tokens": [
            {"id": it, "text": text, "share": nullable(share), "null_share": nullable(null)}
            for it, text, (share, null) in zip(ids, texts, shares, strict=False)
        ],
    }


def _domains(run: RunReader, layer: int, number: int) -> list[dict[str, Any]]:
    """Share of each task in the expert's assignments, and in those of its whole layer."""
    profile = run.profile
    if profile is None or layer not in profile.layers or number >= profile.num_experts:
        return []
    row = profile.layers.index(layer)
    mine = {name: int(counts[row, number]) for name, counts in profile.by_task.items()}
    all_of_layer = {name: int(counts[row].sum()) for name, counts in profile.by_task.items()}
    total, of_layer = sum(mine.values()), sum(all_of_layer.values())
    return [
        {
            "name": name,
            "share": nullable(count / total if total else np.nan),
            "null_share": nullable(all_of_layer[name] / of_layer if of_layer else np.nan),
        }
        for name, count in sorted(mine.items(), key=lambda it: -it[1])
    ]


def _why_no_domains(run: RunReader) -> str:
    """What somebody who looks for the domains of an expert can do to have them."""
    config = run.config
    if config is None:
        return ""
    data, names = config.data, config.data.tasks
    if names is None and len(data.paths) > 1:
        return (
            f"This run mixes {len(data.paths)} sources that have no names. Where `data.tasks` "
            "gives one to each of `data.paths`, their shares of every expert are counted."
        )
    if names is None:
        return (
            "All data of this run is of one source. Give each domain a path of its own in "
            "`data.paths`, and its name in `data.tasks`: their shares of every expert are then "
            "counted."
        )
    if config.training.recompute != "none" and config.parallel.pipeline_parallel_size > 1:
        return (
            "Domains are not counted where the stages of a pipeline compute activations again: "
            "set `training.recompute` to none to have them."
        )
    return "Domains are counted, and are shown with the first checkpoint."


def moves(run: RunReader, asked: Asked) -> dict[str, Any]:
    """The experts whose rank by load in their layer has changed most between two steps."""
    span = run.span
    if run.windows.shape is None or span[0] > span[1]:
        return {"since": 0, "last": 0, "moves": []}
    saved = [step for step in run.checkpoints if span[0] <= step < span[1]]
    since = min(max(asked.whole("since", saved[-1] if saved else span[0], 1), span[0]), span[1])
    last = min(max(asked.whole("last", span[1], 1), since), span[1])
    before, after = (_load_until(run, step) for step in (since, last))
    ranks = [_ranks(load) for load in (before, after)]
    change = np.abs(ranks[1] - ranks[0])
    known = np.isfinite(before) & np.isfinite(after)
    order = np.lexsort((-np.abs(after - before).ravel(), -np.where(known, change, -1).ravel()))
    found = []
    for place in order[:_MOVES].tolist():
        row, number = divmod(place, change.shape[1])
        if not known[row, number] or not change[row, number]:
            break
        found.append(
            {
                "layer": run.windows.shape.layers[row],
                "expert": number,
                "rank_before": int(ranks[0][row, number]),
                "rank_after": int(ranks[1][row, number]),
                "ratio_before": nullable(before[row, number]),
                "ratio_after": nullable(after[row, number]),
            }
        )
    return {"since": since, "last": last, "moves": found}


def _load_until(run: RunReader, step: int) -> Float64Array:
    return run.windows.profile(max(run.span[0], step - _COMPARED_STEPS + 1), step).relative_load


def _ranks(load: Float64Array) -> Any:
    """Place of each expert in its layer by load, 1 for the busiest. [L, E]"""
    order = np.argsort(-load, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, load.shape[1] + 1)[None, :], axis=1)
    return ranks


def ranks(run: RunReader, asked: Asked) -> dict[str, Any]:
    """The load of each expert parallel process over the mean of all, in all layers together.

    It waits at least as long as the slowest one computes longer.
    """
    placed = np.array(run.expert_ranks())
    if not placed.size:
        return {"ranks": []}
    window = asked.window(run.span)
    counts = run.windows.profile(*window).tokens_per_expert
    load = np.bincount(placed.ravel(), weights=counts.ravel())
    mean = load.mean()
    (seconds,) = run.steps.means([window]).expert_rank_seconds
    waits = seconds.max(initial=0.0) - seconds if len(seconds) == len(load) else load * np.nan
    return {
        "ranks": [
            {
                "rank": rank,
                "load": nullable(value / mean if mean else np.nan),
                "wait_seconds": nullable(wait),
            }
            for rank, (value, wait) in enumerate(zip(load.tolist(), waits.tolist(), strict=True))
        ]
    }

"""Answers about the whole of a run over its steps: training, and layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.telemetry.values.layer_values import load_entropy_ratio
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.columns import Span
from moe_megatron.webapp.json_values import nested, nullable
from moe_megatron.webapp.layer_quantities import (
    experts_per_token,
    measured_quantities,
    varied_choice,
)
from moe_megatron.webapp.run_reader import RunReader

_BALANCE = ("max_over_mean", "entropy", "drop_rate", "dead")
_NAMED = ("z_loss", "bias_spread")
"""Quantities that an answer about layers has under their own names."""

Columns = list[tuple[Span, RoutingProfile]]


def series(run: RunReader, asked: Asked) -> dict[str, Any]:
    """Loss, learning rate, gradient norm and speed over steps; evaluations, and phases."""
    spans = asked.spans(run.span)
    means = run.steps.means(spans)
    first, last = spans[0][0], spans[-1][1]
    return {
        "steps": spans,
        "loss": nested(means.loss),
        "learning_rate": nested(means.learning_rate),
        "grad_norm": nested(means.grad_norm),
        "tokens_per_second": nested(means.tokens_per_second),
        "memory_bytes": nested(means.memory_bytes),
        "peak_memory_bytes": nested(means.peak_memory_bytes),
        "evaluations": [
            {"step": it.step, "name": name, "loss": nullable(loss)}
            for it in run.steps.evaluations
            if first - 1 <= it.step <= last
            for name, loss in [(it.split, it.loss), *((t.name, t.loss) for t in it.tasks)]
        ],
        "phases": {name: nullable(share) for name, share in run.phases().items()},
    }


def routed_columns(run: RunReader, asked: Asked) -> Columns:
    """The routing of each column of the window that is asked for; [] without routing."""
    if run.windows.shape is None:
        return []
    first, last = asked.window(run.span)
    return list(run.windows.columns(first, last, asked.columns))


@dataclass(frozen=True, slots=True)
class _Column:
    """All that is told of the layers in a column, [L] each."""

    balance: Mapping[str, Float64Array]
    """By its name in the answer."""
    measured: Mapping[str, Float64Array]
    """By the name of the quantity."""


def _column(profile: RoutingProfile) -> _Column:
    balance = {
        "max_over_mean": profile.imbalance,
        "entropy": load_entropy_ratio(profile.tokens_per_expert),
        "drop_rate": profile.drop_rate,
        "dead": profile.dead_expert_mask().sum(axis=1).astype(np.float64),
    }
    shown = [*measured_quantities(profile.per_layer), *filter(None, [varied_choice([profile])])]
    return _Column(balance, {it.name: it.values(profile) for it in shown})


def layers(run: RunReader, asked: Asked) -> dict[str, Any]:
    """What the router of each layer did over steps, each [layers][columns]."""
    shape, windows = run.windows.shape, run.windows
    if shape is None:
        return {name: [] for name in ("steps", "layers", *_BALANCE, *_NAMED, "more")}
    found = windows.values(_column, *asked.window(run.span), asked.columns)
    spans = [span for span, _ in found]
    bias = run.samples.bias(spans, shape)

    def measured(name: str) -> Any:
        nothing = np.full(len(shape.layers), np.nan)
        return _rows([column.measured.get(name, nothing) for _, column in found])

    more = measured_quantities(it for it in windows.quantities if it not in _NAMED)
    varied = experts_per_token(shape.top_k)
    if any(varied.name in column.measured for _, column in found):
        more.append(varied)
    return {
        "steps": spans,
        "layers": list(shape.layers),
        **{name: _rows([column.balance[name] for _, column in found]) for name in _BALANCE},
        "z_loss": measured("z_loss") if "z_loss" in windows.quantities else [],
        "bias_spread": [] if bias is None else _rows(list(np.ptp(bias, axis=2))),
        "more": [
            {"name": it.name, "title": it.title, "says": it.note, "values": measured(it.name)}
            for it in more
        ],
    }


def _rows(columns: list[Float64Array]) -> Any:
    """Values of columns, [L] each, as [layers][columns]; [] without columns."""
    return nested(np.stack(columns, axis=1)) if columns else []

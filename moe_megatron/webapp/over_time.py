"""Answers about the whole of a run over its steps: training, and layers."""

from typing import Any

import numpy as np

from moe_megatron.telemetry.values.layer_values import load_entropy_ratio
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.columns import Span
from moe_megatron.webapp.json_values import nested, nullable
from moe_megatron.webapp.layer_quantities import (
    LayerQuantity,
    measured_quantities,
    varied_choice,
)
from moe_megatron.webapp.run_reader import RunReader

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


def layers(run: RunReader, asked: Asked) -> dict[str, Any]:
    """What the router of each layer did over steps, each [layers][columns]."""
    columns = routed_columns(run, asked)
    profiles = [profile for _, profile in columns]
    shape = run.windows.shape

    def rows(values: list[Any]) -> Any:
        return nested(np.stack(values, axis=1)) if values else []

    def quantity(name: str) -> Any:
        if name not in run.windows.quantities:
            return []
        nothing = np.full(0 if shape is None else len(shape.layers), np.nan)
        return rows([it.per_layer.get(name, nothing) for it in profiles])

    spans = [span for span, _ in columns]
    bias = None if shape is None else run.samples.bias(spans, shape)
    spread = [] if bias is None else list(np.ptp(bias, axis=2))
    return {
        "steps": spans,
        "layers": [] if shape is None else list(shape.layers),
        "max_over_mean": rows([it.imbalance for it in profiles]),
        "entropy": rows([load_entropy_ratio(it.tokens_per_expert) for it in profiles]),
        "drop_rate": rows([it.drop_rate for it in profiles]),
        "dead": rows([it.dead_expert_mask().sum(axis=1).astype(np.float64) for it in profiles]),
        "z_loss": quantity("z_loss"),
        "bias_spread": rows(spread),
        "more": [
            {
                "name": it.name,
                "title": it.title,
                "says": it.note,
                "values": rows([it.values(profile) for profile in profiles]),
            }
            for it in _more(run, profiles)
        ],
    }


def _more(run: RunReader, profiles: list[RoutingProfile]) -> list[LayerQuantity]:
    """What else was measured of layers."""
    names = [it for it in run.windows.quantities if it not in _NAMED]
    return [*measured_quantities(names), *filter(None, [varied_choice(profiles)])]

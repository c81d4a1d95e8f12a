"""Answers about the whole of a run over its steps: training, layers, and what they cost."""

from typing import Any

import numpy as np

from moe_megatron.config import RunConfig
from moe_megatron.telemetry.values.layer_values import load_entropy_ratio
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.columns import Span
from moe_megatron.webapp.json_values import nested, nullable
from moe_megatron.webapp.run_reader import RunReader

Columns = list[tuple[Span, RoutingProfile]]

_FORWARD_AND_BACKWARD = 6
"""Operations for each parameter and assignment: two forward, twice as many backward."""


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
        "memory_bytes": [],
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
    }


def cost(run: RunReader, asked: Asked) -> dict[str, Any]:
    """Operations of the experts of each layer over steps, each [layers][columns]."""
    answer: dict[str, Any] = {
        "steps": [], "flops_per_layer": [], "bytes": [], "money": [], "currency": None,
    }  # fmt: skip
    config = run.config
    if config is None:
        return {**answer, "note": "The run has no config.yaml that this version reads, so that "
                "the size of its experts is not known."}  # fmt: skip
    each = _parameters_of_expert(config)
    if each is None:
        return {**answer, "note": "The size of experts of another kind than mlp is not known."}
    columns = routed_columns(run, asked)
    flops = [
        _FORWARD_AND_BACKWARD * each * it.tokens_per_expert.sum(axis=1) / max(1, it.steps)
        for _, it in columns
    ]
    note = (
        "Operations a step of routed experts alone, forward and backward: 6 for each parameter "
        f"({each:,} an expert) and assignment that was not dropped."
    )
    return {
        **answer,
        "steps": [span for span, _ in columns],
        "flops_per_layer": nested(np.stack(flops, axis=1)) if flops else [],
        "note": note,
    }


def _parameters_of_expert(config: RunConfig) -> int | None:
    """Parameters of the matrices of one expert; None for kinds other than mlp."""
    if config.moe.expert.name != "mlp" or config.moe.num_experts is None:
        return None
    matrices = 3 if config.model.is_gated else 2
    return matrices * config.model.hidden_size * config.expert_hidden_size

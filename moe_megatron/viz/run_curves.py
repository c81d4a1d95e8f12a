"""What can be drawn of a run over its steps, by name: from its files to panels of lines.

Long runs are condensed: at most 200 ranges of steps, each a mean. It knows the
files of a run, not how lines are drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.drawing.lines import Line, Panel
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.telemetry.catalog import quantities
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.telemetry.values.layer_values import shown_values
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.viz.condensed import (
    RunMetrics,
    StepColumns,
    load_metrics,
    load_routing,
    recorded_routing,
)

_OF_STEPS: Mapping[str, tuple[str, str]] = {
    "loss": (
        "Training loss (band: steps that are drawn together); dots are evaluations",
        "nats per token",
    ),
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Norm of the gradient before clipping", ""),
    "tokens_per_second": ("Speed", "tokens per second"),
}
"""Title and axis of what every run has."""
_LAYERS = "line: mean of the layers, band: all of them"


@dataclass(frozen=True, slots=True)
class _OfRouting:
    title: str
    axis: str
    values: Callable[[RoutingProfile], Float64Array]
    """[L]"""
    bottom: float | None = None


_OF_ROUTING: Mapping[str, _OfRouting] = {
    "imbalance": _OfRouting(
        f"Load of the fullest expert over the mean ({_LAYERS})", "imbalance (1 is even)",
        lambda profile: profile.imbalance, 1.0,
    ),
    "load_cv": _OfRouting(
        f"Spread of the experts' load ({_LAYERS})", "standard deviation / mean",
        lambda profile: profile.load_cv, 0.0,
    ),
    "load_variance": _OfRouting(
        f"Variance of the experts' shares of the load ({_LAYERS})", "variance",
        lambda profile: profile.load_variance, 0.0,
    ),
    "drop_rate": _OfRouting(
        f"Assignments that full experts dropped ({_LAYERS})", "share of all",
        lambda profile: profile.drop_rate, 0.0,
    ),
    "dead_experts": _OfRouting(
        f"Experts without a token ({_LAYERS})", "experts a layer",
        lambda profile: profile.dead_expert_mask().sum(axis=1).astype(float), 0.0,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    label: str
    metrics: RunMetrics
    routing: StepColumns[RoutingProfile] | None


def curve_panels(runs: Mapping[str, Path], names: Sequence[str]) -> list[Panel]:
    """One panel for each name, with a line for each run that measured it.

    Args:
        runs: Folders of runs, by the label to show.
        names: Of `_OF_STEPS`, `_OF_ROUTING`, or of a quantity.

    Raises:
        ConfigError: A name is unknown.
        DataError: A file is missing or malformed, or no run has what a name asks for.
    """
    known = [*_OF_STEPS, *_OF_ROUTING, *(it.name for it in quantities())]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"metrics has no '{name}'.{nearest(str(name), known)} It knows "
                f"{join_words(known, 'and')}."
            )
    routed = any(name not in _OF_STEPS for name in names)
    loaded = [_read(label, folder, routed=routed) for label, folder in runs.items()]
    return [_panel(name, loaded) for name in names]


def _read(label: str, folder: Path, *, routed: bool) -> _Run:
    path = recorded_routing(folder) if routed else None
    return _Run(
        label=label,
        metrics=load_metrics(folder / METRICS_FILE),
        routing=None if path is None else load_routing(path),
    )


def _panel(name: str, runs: Sequence[_Run]) -> Panel:
    if name in _OF_STEPS:
        title, axis = _OF_STEPS[name]
        lines = [_of_steps(name, run) for run in runs]
        bottom = None
    else:
        shown = _OF_ROUTING.get(name) or _of_quantity(name)
        title, axis, bottom = shown.title, shown.axis, shown.bottom
        lines = [_of_routing(shown, run) for run in runs]
    if not any(line.at for line in lines):
        raise DataError(
            f"no '{name}' was recorded in {join_words([run.label for run in runs], 'or')}; leave "
            "it out of metrics, or train with telemetry.enabled."
        )
    return Panel(title=title, axis=axis, lines=lines, bottom=bottom)


def _of_steps(name: str, run: _Run) -> Line:
    columns = list(run.metrics.columns)
    measured = [(it, getattr(it, name)) for it in columns if getattr(it, name).count]
    evaluations = run.metrics.evaluations if name == "loss" else []
    return Line(
        label=run.label,
        at=[(it.first_step + it.last_step) / 2 for it, _ in measured],
        values=[values.mean for _, values in measured],
        low=[values.low for _, values in measured],
        high=[values.high for _, values in measured],
        dots=[(it.step, it.loss) for it in evaluations],
    )


def _of_routing(shown: _OfRouting, run: _Run) -> Line:
    profiles = [] if run.routing is None else list(run.routing)
    found = [(_middle(profile), shown.values(profile)) for profile in profiles]
    found = [(at, values[np.isfinite(values)]) for at, values in found]
    found = [(at, values) for at, values in found if values.size]
    return Line(
        label=run.label,
        at=[at for at, _ in found],
        values=[float(values.mean()) for _, values in found],
        low=[float(values.min()) for _, values in found],
        high=[float(values.max()) for _, values in found],
    )


def _middle(profile: RoutingProfile) -> float:
    return ((profile.first_step or 0) + (profile.last_step or 0)) / 2


def _of_quantity(name: str) -> _OfRouting:
    quantity = next(it for it in quantities() if it.name == name)
    unit = "relative to its maximum" if quantity.part_of_maximum else quantity.unit

    return _OfRouting(f"{quantity.title} ({_LAYERS})", unit, partial(shown_values, quantity))

"""One HTML file that shows how a run went: loss, expert load, router health.

Reads a run directory, even of a run that is still training or was killed, and writes the page. This
module decides what is shown and how it is worded; reading is in `report_data`, drawing in `svg` and
`load_strip`, style and script in `report_page`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path

import numpy as np

from moe_megatron.files import replace_file
from moe_megatron.telemetry.catalog import quantities
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.telemetry.values.layer_values import shown_values
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.viz.load_strip import MAX_ROWS, load_strips
from moe_megatron.viz.report_data import (
    ReportData,
    RunMetrics,
    RunRouting,
    StepStats,
    load_report_data,
)
from moe_megatron.viz.report_page import render_page
from moe_megatron.viz.report_tasks import tasks_section
from moe_megatron.viz.svg import Series, few_points, line_chart

REPORT_FILE = "report.html"
MAX_OPEN_STRIPS = 16
"""Largest number of load strips shown at first; those of further layers are collapsed."""


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Writes the report of a run.

    Args:
        run_dir: directory with metrics.jsonl and, if any, routing.jsonl and config.yaml.
        output: file to write; RUN/report.html when None.

    Returns:
        The file written.

    Raises:
        DataError: a file of the run is missing, empty or malformed.
    """
    data = load_report_data(run_dir)
    path = run_dir / REPORT_FILE if output is None else output
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [render_report(data).encode()])
    return path


def render_report(data: ReportData) -> str:
    """Returns the report as an HTML document."""
    name = escape(data.run_dir.resolve().name)
    sections = [_header(name, data), _training_section(data.metrics)]
    whole = None if data.routing is None else data.routing.whole
    sections.append(tasks_section(data.metrics.evaluations, whole))
    if data.routing is not None:
        sections += [
            _load_section(data.routing),
            _router_section(data.routing),
            _dead_section(data.routing),
        ]
    sections += [
        _config_section(data.config),
        "<footer>Written by moe_megatron from the files of the run.</footer>",
    ]
    body = "\n".join(sections)
    return render_page(f"{name} - training report", body)


def _fact(term: str, value: str, detail: str = "") -> str:
    small = f"<small>{escape(detail)}</small>" if detail else ""
    return f"<div><dt>{escape(term)}</dt><dd>{escape(value)}{small}</dd></div>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _header(name: str, data: ReportData) -> str:
    metrics = data.metrics
    losses = [column.loss.low for column in metrics.columns if column.loss.count]
    facts = [
        _fact("steps", f"{metrics.last_step:,}", f"of {metrics.total_steps:,} planned"),
        _fact("tokens", f"{metrics.tokens:,}", f"{_duration(metrics.seconds)} of training"),
    ]
    if metrics.final_loss is not None:
        best = f"best step {min(losses):.3f}" if losses else "never finite"
        facts.append(_fact("training loss", f"{metrics.final_loss:.3f}", best))
    for split in dict.fromkeys(record.split for record in metrics.evaluations):
        facts += _evaluation_facts(split, [r for r in metrics.evaluations if r.split == split])
    facts.append(_fact("tokens per second", f"{metrics.median_speed:,.0f}", "median of the steps"))
    if metrics.skipped:
        facts.append(_fact("skipped steps", f"{metrics.skipped:,}", "gradient was not finite"))
    lead = "no routing was measured"
    if data.routing is not None:
        whole = data.routing.whole
        worst = f"{np.nan_to_num(whole.imbalance).max():.2f}"
        facts.append(_fact("imbalance", worst, "max over mean load, whole run, worst layer"))
        lead = (
            f"{len(whole.layers)} MoE layer{'s' * (len(whole.layers) > 1)} of "
            f"{whole.num_experts} experts, top-{whole.top_k}"
        )
    return (
        f'<header><h1>{name}</h1><p class="lead">{lead}</p>'
        f'<dl class="facts">{"".join(facts)}</dl></header>'
    )


def _evaluation_facts(split: str, records: Sequence[EvalRecord]) -> list[str]:
    last, best = records[-1], min(records, key=lambda record: record.loss)
    at = f"step {last.step:,}"
    detail = at if best is last else f"{at}, best {best.loss:.3f} at step {best.step:,}"
    facts = [_fact(f"{split} loss", f"{last.loss:.3f}", detail)]
    if not last.measures:  # a loss of tokens
        facts.append(_fact(f"{split} perplexity", f"{last.perplexity:,.2f}", at))
    for name, value in last.measures.items():
        facts.append(_fact(f"{split} {name.replace('_', ' ')}", f"{value:.3f}", at))
    return facts


def _training_section(metrics: RunMetrics) -> str:
    columns = list(metrics.columns)
    x = [column.last_step for column in columns]
    band = metrics.columns.width > 1
    loss = [
        Series(
            name="training",
            x=x,
            y=[column.loss.mean for column in columns],
            low=[column.loss.low if column.loss.count else math.nan for column in columns] * band,
            high=[column.loss.high if column.loss.count else math.nan for column in columns] * band,
        )
    ]
    for split in dict.fromkeys(record.split for record in metrics.evaluations):
        records = [record for record in metrics.evaluations if record.split == split]
        loss.append(few_points(split, [it.step for it in records], [it.loss for it in records]))

    def small_chart(title: str, value: Callable[[StepStats], float]) -> str:
        values = [value(column) for column in columns]
        if not any(map(math.isfinite, values)):
            return ""
        return line_chart(title, [Series(name=title, x=x, y=values)], include=[0.0])

    note = (
        f"Each point is the mean of up to {metrics.columns.width} steps; the band spans their "
        "lowest and highest loss."
        if band
        else ""
    )
    charts = (
        line_chart("Loss (nats per token)", loss, note=note),
        small_chart("Gradient norm", lambda column: column.grad_norm.mean),
        small_chart("Learning rate", lambda column: column.learning_rate.mean),
        small_chart("Tokens per second", lambda column: column.tokens_per_second.mean),
    )
    return f'<section><h2>Training</h2><div class="charts">{"".join(charts)}</div></section>'


def _load_section(routing: RunRouting) -> str:
    strips = load_strips(list(routing.columns))
    notes = ["Steps run from left to right, experts from top to bottom."]
    if routing.columns.width > 1:
        notes.append(f"Each column is the sum of up to {routing.columns.width} steps.")
    per_row = -(-routing.whole.num_experts // MAX_ROWS)
    if per_row > 1:
        notes.append(f"Each row is the mean of {per_row} experts.")
    folded = strips[MAX_OPEN_STRIPS:]
    more = (
        f"<details><summary>{len(folded)} more layers</summary>"
        f'<div class="charts">{"".join(folded)}</div></details>'
        if folded
        else ""
    )
    return (
        f"<section><h2>Expert load</h2><p>{' '.join(notes)} The colour is the load of an expert "
        "relative to its fair share, on a logarithmic scale.</p>"
        '<div class="scale" role="img" aria-label="Colour scale: one eighth of the fair share is '
        'blue, the fair share neutral, eight times the fair share red"><i></i><div>'
        "<span>1/8</span><span>1/4</span><span>1/2</span><span>fair</span><span>2x</span>"
        "<span>4x</span><span>8x</span></div></div>"
        "<noscript><p>The load strips are painted by JavaScript.</p></noscript>"
        f'<div class="charts">{"".join(strips[:MAX_OPEN_STRIPS])}</div>{more}</section>'
    )


def _layer_series(
    profiles: Sequence[RoutingProfile], measure: Callable[[RoutingProfile], Float64Array]
) -> list[Series]:
    values = np.stack([measure(profile) for profile in profiles])  # [columns, L]
    x = [profile.last_step or 0 for profile in profiles]
    return [
        Series(name=f"layer {layer}", x=x, y=values[:, index].tolist())
        for index, layer in enumerate(profiles[0].layers)
    ]


def _router_section(routing: RunRouting) -> str:
    profiles, whole = list(routing.columns), routing.whole
    charts = [
        line_chart(
            "Imbalance (max over mean load)",
            _layer_series(profiles, lambda profile: profile.imbalance),
            note="1 is perfect balance; a layer waits for its busiest expert.",
            include=[1.0],
        ),
        *_quantity_charts(profiles),
    ]
    if (whole.assigned != whole.tokens * whole.top_k).any():
        charts.append(
            line_chart(
                "Experts per token",
                _layer_series(profiles, lambda profile: profile.experts_per_token),
                note=f"The target is {whole.top_k}; dropped assignments are included.",
                include=[float(whole.top_k)],
            )
        )
    if whole.dropped.any():
        charts.append(
            line_chart(
                "Dropped assignments (share of all)",
                _layer_series(profiles, lambda profile: profile.drop_rate),
                note="Assignments beyond the capacity of their expert, which skip the layer.",
                include=[0.0],
            )
        )
    return f'<section><h2>Routers</h2><div class="charts">{"".join(charts)}</div></section>'


def _quantity_charts(profiles: Sequence[RoutingProfile]) -> list[str]:
    """One chart for each quantity that the run measured; unknown ones come last, by name."""
    found = {name for profile in profiles for name in profile.means}
    known = [quantity for quantity in quantities() if quantity.name in found]
    charts = [_quantity_chart(quantity, profiles) for quantity in known]
    for name in sorted(found - {quantity.name for quantity in known}):
        series = _layer_series(profiles, partial(_values_of, name))
        note = "A quantity that the run registered and that is not known here."
        charts.append(line_chart(name, series, note=note))
    return charts


def _quantity_chart(quantity: Quantity, profiles: Sequence[RoutingProfile]) -> str:
    unit = "relative to its maximum" if quantity.part_of_maximum else quantity.unit
    return line_chart(
        f"{quantity.title} ({unit})" if unit else quantity.title,
        _layer_series(profiles, partial(shown_values, quantity)),
        note=quantity.note,
        include=[] if quantity.ideal is None else [quantity.ideal],
    )


def _values_of(name: str, profile: RoutingProfile) -> Float64Array:
    values = profile.per_layer.get(name)
    return np.full(len(profile.layers), np.nan) if values is None else values


def _dead_section(routing: RunRouting) -> str:
    recent, whole = routing.recent, routing.whole
    span = f"steps {recent.first_step:,} to {recent.last_step:,}"
    mask = recent.dead()
    rows = []
    for index, layer in enumerate(whole.layers):
        dead = np.flatnonzero(mask[index])
        if dead.size:
            shown = ", ".join(map(str, dead[:40].tolist())) + (", ..." if dead.size > 40 else "")
            over_run = whole.relative_load[index, dead].max()
            rows.append(
                f'<tr><td>{layer}</td><td class="bad">{dead.size} of {whole.num_experts}</td>'
                f'<td>{over_run:.2f}x</td><td class="list">{shown}</td></tr>'
            )
    if not rows:
        text = f"None: every expert received tokens in {span}."
        return f"<section><h2>Dead experts</h2><p>{text}</p></section>"
    return (
        f"<section><h2>Dead experts</h2><p>Experts that received no token in {span}.</p>"
        '<div class="card scroll"><table><thead><tr><th scope="col">layer</th>'
        '<th scope="col">dead</th><th scope="col">their highest load, whole run</th>'
        f'<th scope="col" class="list">experts</th></tr></thead><tbody>{"".join(rows)}'
        "</tbody></table></div></section>"
    )


def _config_section(config: str | None) -> str:
    if config is None:
        return ""
    return (
        "<section><h2>Configuration</h2><details><summary>config.yaml</summary>"
        f'<div class="card"><pre>{escape(config)}</pre></div></details></section>'
    )

"""The part of a report on named tasks: what a training did to each, and which experts serve it."""

from collections.abc import Sequence
from html import escape

import numpy as np

from moe_megatron.telemetry.values.forgetting import COLUMNS, Forgetting, forgetting
from moe_megatron.telemetry.values.json_fields import Int64Array
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.viz.svg import few_points, line_chart


def tasks_section(evaluations: Sequence[EvalRecord], whole: RoutingProfile | None) -> str:
    """The section, as HTML; "" of a run without named tasks.

    Args:
        evaluations: Of the run, in order.
        whole: Routing of the whole run; None where none was measured.
    """
    by_task = {} if whole is None else whole.by_task
    found = forgetting(evaluations)
    judged = [it for it in evaluations if it.tasks and it.split == "validation"]
    if not judged and not by_task:
        return ""
    parts = [
        *([_before_and_after(found)] if found is not None else []),
        *([_curves(judged)] if judged else []),
        *([_routing(whole, by_task)] if whole is not None and by_task else []),
    ]
    return f"<section><h2>Tasks</h2>{''.join(parts)}</section>"


def _before_and_after(found: Forgetting) -> str:
    steps = f"step {found.first.step:,} and step {found.last.step:,}"
    return (
        f"<p>Held-out rows of each task at {steps}; what is kept are the experts of a token, on "
        "average over layers and in the layer where it is least.</p>"
        f"{_table(COLUMNS, found.rows)}"
    )


def _curves(judged: Sequence[EvalRecord]) -> str:
    names = list(dict.fromkeys(score.name for record in judged for score in record.tasks))
    scores = {
        name: [(r.step, s) for r in judged for s in r.tasks if s.name == name] for name in names
    }

    def chart(title: str, field: str) -> str:
        series = [
            few_points(
                name,
                [step for step, _ in found],
                [np.nan if (y := getattr(score, field)) is None else y for _, score in found],
            )
            for name, found in scores.items()
        ]
        return line_chart(title, series) if np.isfinite([it.y for it in series]).any() else ""

    charts = (
        chart("Loss by task (nats per token)", "loss"),
        chart("Accuracy by task (share of learned tokens)", "accuracy"),
    )
    return f'<div class="charts">{"".join(charts)}</div>'


def _routing(whole: RoutingProfile, by_task: dict[str, Int64Array]) -> str:
    """For each task, the expert that serves it most above its share of all tasks."""
    total = np.sum([*by_task.values()], axis=0)
    of_all = _shares(total)
    rows = []
    for name, counts in by_task.items():
        share = _shares(counts)
        layer, expert = np.unravel_index(np.argmax(share - of_all), share.shape)
        rows.append(
            (
                name,
                f"{counts.sum() / max(1, total.sum()):.1%}",
                f"layer {whole.layers[layer]}, expert {expert}",
                f"{share[layer, expert]:.1%}",
                f"{of_all[layer, expert]:.1%}",
            )
        )
    heads = ("task", "part of all assignments", "most its own", "of the task", "of all tasks")
    return (
        "<p>Which expert a task uses most beyond what all tasks together do, and which part of the "
        f"layer's assignments it gets.</p>{_table(heads, rows)}"
    )


def _shares(counts: Int64Array) -> np.ndarray:
    """Each expert's part of its layer, [layers, experts]."""
    return counts / np.maximum(1, counts.sum(axis=1, keepdims=True))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(it)}</th>' for it in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )

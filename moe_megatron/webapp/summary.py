"""A run in facts, tables and a few curves: what one reads first, and what is read without script.

It decides what is told and in which words, as text; the page and `plain_page` draw it.
"""

import math
from collections.abc import Sequence
from typing import Any

from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.json_values import rounded
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.summary_tables import dead_table, routers_table, tasks_tables

Fact = dict[str, str]


def summary(run: RunReader, asked: Asked) -> dict[str, Any]:
    """Facts, tables and curves of the whole run."""
    windows = run.windows
    whole = None if windows.shape is None else windows.profile(*run.span)
    facts = [_fact("model", _model(whole))]
    facts += _of_training(run)
    if whole is not None:
        worst = max((it for it in whole.imbalance.tolist() if it == it), default=0.0)
        facts.append(
            _fact("imbalance", f"{worst:.2f}", "max over mean load, whole run, worst layer")
        )
    tables = tasks_tables(run)
    if whole is not None:
        tables += [routers_table(run, whole), dead_table(run, whole)]
    return {"facts": facts, "tables": tables, "charts": _accuracy(run.steps.evaluations)}


def _fact(name: str, value: str, note: str = "") -> Fact:
    return {"name": name, "value": value, "note": note}


def _model(whole: RoutingProfile | None) -> str:
    if whole is None:
        return "no routing was measured"
    layers = len(whole.layers)
    return (
        f"{layers} MoE layer{'s' * (layers > 1)} of {whole.num_experts} experts, top-{whole.top_k}"
    )


def _of_training(run: RunReader) -> list[Fact]:
    steps, totals = run.steps, run.steps.totals()
    if not steps.last_step:
        return [_fact("steps", f"{run.span[1]:,}")]
    facts = [
        _fact("steps", f"{steps.last_step:,}", f"of {steps.total_steps:,} planned"),
        _fact("tokens", f"{totals.tokens:,}", f"{_duration(totals.seconds)} of training"),
    ]
    if steps.loss is not None:
        lowest = totals.lowest_loss
        note = f"best step {lowest:.3f}" if math.isfinite(lowest) else "never finite"
        facts.append(_fact("training loss", f"{steps.loss:.3f}", note))
    for split in dict.fromkeys(it.split for it in steps.evaluations):
        facts += _of_evaluations(split, [it for it in steps.evaluations if it.split == split])
    if math.isfinite(totals.typical_speed):
        speed = f"{totals.typical_speed:,.0f}"
        facts.append(_fact("tokens per second", speed, "median of the steps"))
    if totals.skipped:
        facts.append(_fact("skipped steps", f"{totals.skipped:,}", "gradient was not finite"))
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _of_evaluations(split: str, records: Sequence[EvalRecord]) -> list[Fact]:
    last, best = records[-1], min(records, key=lambda record: record.loss)
    at = f"step {last.step:,}"
    note = at if best is last else f"{at}, best {best.loss:.3f} at step {best.step:,}"
    facts = [_fact(f"{split} loss", f"{last.loss:.3f}", note)]
    if not last.measures:  # a loss of tokens
        facts.append(_fact(f"{split} perplexity", f"{last.perplexity:,.2f}", at))
    for name, value in last.measures.items():
        facts.append(_fact(f"{split} {name.replace('_', ' ')}", f"{value:.3f}", at))
    return facts


def _accuracy(evaluations: Sequence[EvalRecord]) -> list[dict[str, Any]]:
    """The accuracy of tasks over steps; their losses are among those of the training."""
    judged = [it for it in evaluations if it.tasks and it.split == "validation"]
    names = dict.fromkeys(task.name for record in judged for task in record.tasks)
    lines = {}
    for name in names:
        of_task = [{task.name: task.accuracy for task in record.tasks} for record in judged]
        values = [math.nan if (it := each.get(name)) is None else it for each in of_task]
        if any(map(math.isfinite, values)):
            lines[name] = rounded(values)
    if not lines:
        return []
    title = "Accuracy by task (share of learned tokens)"
    return [{"title": title, "steps": [it.step for it in judged], "lines": lines}]

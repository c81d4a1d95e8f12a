"""Holds recording rules and alerts to the catalog, and tells dashboards what is recorded."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from moe_megatron.dashboards.promql import Analysis, Source, analyze, exported
from moe_megatron.dashboards.rules import Alert, Thresholds, alerts, recording_rules

_KEPT = ("job", "cluster", "run")
"""Labels without which nobody knows what an alert is about."""


@dataclass(slots=True)
class Rules:
    """All rules, looked through."""

    sources: dict[str, Source] = field(default_factory=dict)
    """What they record."""
    names: set[str] = field(default_factory=set)
    """What they query."""
    faults: list[str] = field(default_factory=list)


def check_rules(limits: Thresholds) -> Rules:
    """Look through all rules."""
    rules, sources = Rules(), exported()
    for name, expr in recording_rules(limits).items():
        analysis = analyze(expr, sources)
        rules.faults += [f"rule {name}: {fault}" for fault in analysis.problems]
        rules.sources[name] = Source(analysis.answer.labels)
        rules.names |= analysis.names
    for alert in alerts(limits):
        analysis = analyze(alert.expr, sources | rules.sources)
        rules.faults += [f"alert {alert.name}: {one}" for one in _alert_faults(alert, analysis)]
        rules.names |= analysis.names
    return rules


def _alert_faults(alert: Alert, analysis: Analysis) -> Iterator[str]:
    yield from analysis.problems
    labels = set(analysis.answer.labels)
    named = set(re.findall(r"\$labels\.(\w+)", f"{alert.summary} {alert.action}"))
    yield from (f"its text names {label}, a label it lacks" for label in sorted(named - labels))
    if not labels.issuperset(_KEPT):
        yield f"must keep {', '.join(_KEPT)}"

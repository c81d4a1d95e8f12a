"""Checks recording rules and alerts against the catalog, and lists the series they record."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from moe_megatron.dashboards.promql import Analysis, Source, analyze, exported
from moe_megatron.dashboards.rules import Alert, Thresholds, alerts, recording_rules

_KEPT = ("job", "cluster", "run")
"""Labels that every alert must keep, since they identify the run."""


@dataclass(slots=True)
class Rules:
    """The result of checking all rules."""

    sources: dict[str, Source] = field(default_factory=dict)
    """The series that they record, by name."""
    names: set[str] = field(default_factory=set)
    """Names of the metrics that they query."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with them, as sentences."""


def check_rules(limits: Thresholds) -> Rules:
    """Check all rules."""
    rules, sources = Rules(), exported()
    for name, expr in recording_rules(limits).items():
        analysis = analyze(expr, sources)
        rules.faults += [f"rule {name}: {fault}" for fault in analysis.problems]
        rules.sources[name] = Source(analysis.answer.labels)
        rules.names |= analysis.names
    for alert in alerts(limits):
        analysis = analyze(alert.expr, sources | rules.sources)
        found = _alert_faults(alert, analysis)
        rules.faults += [f"alert {alert.name}: {fault}" for fault in found]
        rules.names |= analysis.names
    return rules


def _alert_faults(alert: Alert, analysis: Analysis) -> Iterator[str]:
    yield from analysis.problems
    labels = set(analysis.answer.labels)
    named = set(re.findall(r"\$labels\.(\w+)", f"{alert.summary} {alert.action}"))
    yield from (
        f"its text uses the label {label}, which it does not have"
        for label in sorted(named - labels)
    )
    if not labels.issuperset(_KEPT):
        yield f"must keep the labels {', '.join(_KEPT)}"

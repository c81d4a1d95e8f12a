"""Checks dashboards and rules against the catalog: a panel that would stay empty is a fault.

It reads the JSON as Grafana would, not the code that wrote it, and needs no server. Faults are
sentences; an empty list means that there are none.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from moe_megatron.dashboards.check_rules import check_rules
from moe_megatron.dashboards.layout import COLUMNS
from moe_megatron.dashboards.panel_shapes import dashboard_faults, panel_faults
from moe_megatron.dashboards.panels import Json
from moe_megatron.dashboards.promql import (
    Analysis,
    Source,
    analyze,
    exported,
    of_many_runs,
    variables,
    windows,
    without_variables,
)
from moe_megatron.dashboards.queries import RUN, RUNS
from moe_megatron.dashboards.rules import Thresholds
from moe_megatron.telemetry.catalog import metrics
from moe_megatron.telemetry.exporter.discovery import JOB

MAX_SERIES = 300
"""Largest number of series in a panel; more are unreadable and stall browsers."""

_BUILT_IN = re.compile(r"__[\w.]+")
_LABEL = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")
_CLUSTER = {("job", JOB), ("cluster", "$cluster")}
_ONE_RUN = _CLUSTER | {("run", "$run")}
_WINDOWS = {"$__rate_interval", "$__range"}
_HISTOGRAM_PARTS = re.compile(r"_(?:bucket|sum|count)$")


def check(dashboards: Mapping[str, Json]) -> list[str]:
    """All faults of the rules and of the dashboards, which are given by file name."""
    rules = check_rules(Thresholds())
    sources = exported() | rules.sources
    faults, used = list(rules.faults), set(rules.names)
    for file, dashboard in dashboards.items():
        found, names = check_dashboard(dashboard, sources)
        faults += [f"{file}: {fault}" for fault in found]
        used |= names
    uids = Counter(dashboard.get("uid") for dashboard in dashboards.values())
    faults += [f"{uid} is the uid of {number} dashboards" for uid, number in uids.items()
               if number > 1]  # fmt: skip
    faults += [
        f"{metric.name} is in the catalog but in no panel or rule; show it, or do not export it"
        for metric in metrics()
        if metric.name not in {_HISTOGRAM_PARTS.sub("", name) for name in used} | used
    ]
    faults += [f"{name} is recorded but never used" for name in rules.sources if name not in used]
    return faults


def check_dashboard(
    dashboard: Json, sources: Mapping[str, Source]
) -> tuple[list[str], frozenset[str]]:
    """The faults of one dashboard, and the names of the metrics that it queries."""
    faults = list(dashboard_faults(dashboard))
    panels = [(panel, _name(panel)) for panel in all_panels(dashboard)]
    for panel, where in panels:
        faults += panel_faults(panel, where)
    if faults:
        return faults, frozenset()  # the checks below rely on the shape
    faults += _layout_faults([panel for panel, _ in panels])
    faults += _variable_faults(dashboard)
    compares = any(variable["name"] == "runs" for variable in dashboard["templating"]["list"])
    scope, matchers = (_CLUSTER, RUNS) if compares else (_ONE_RUN, RUN)
    if compares:
        sources = of_many_runs(sources)
    names: set[str] = set()
    for annotation in dashboard["annotations"]["list"]:
        analysis = analyze(without_variables(annotation["expr"]), sources)
        names |= analysis.names
        faults += (f"annotation {annotation['name']}: {fault}" for fault in analysis.problems)
    for panel, where in panels:
        for target in panel.get("targets", ()):
            analysis = analyze(without_variables(target["expr"]), sources)
            names |= analysis.names
            faults += (
                f"{where}, query {target['refId']}: {fault}"
                for fault in (*analysis.problems, *_query_faults(panel, target, analysis))
            )
            if not all(selector >= scope for selector in analysis.selectors):
                faults.append(f"{where}, query {target['refId']}: every selector must select "
                              f"the run with {matchers}")  # fmt: skip
        if panel["type"] != "row":
            faults += (f"{where}: {fault}" for fault in _panel_faults(panel))
    for variable, query in variable_queries(dashboard).items():
        found, queried = _variable_query_faults(query, sources)
        faults += [f"variable {variable}: {fault}" for fault in found]
        names |= queried
    return faults, frozenset(names)


def all_panels(dashboard: Json) -> Iterator[Json]:
    """Panels and rows from top to bottom, including panels in collapsed rows."""
    for panel in dashboard.get("panels", ()):
        yield panel
        yield from panel.get("panels", ())


def variable_queries(dashboard: Json) -> dict[str, str]:
    """The query of each variable that has one."""
    return {
        variable["name"]: variable["query"]["query"]
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }


def _name(panel: Json) -> str:
    return f"panel {panel.get('id')} {panel.get('title')!r}"


def _layout_faults(panels: list[Json]) -> Iterator[str]:
    ids = Counter(panel["id"] for panel in panels)
    yield from (f"{n} panels have the id {number}" for number, n in ids.items() if n > 1)
    taken: dict[tuple[int, int], Json] = {}
    for panel in panels:
        grid = panel["gridPos"]
        if grid["w"] < 1 or grid["h"] < 1 or grid["x"] + grid["w"] > COLUMNS:
            yield f"{_name(panel)}: does not fit into {COLUMNS} columns: {grid}"
            continue
        cells = [
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        ]
        others = {_name(taken[cell]) for cell in cells if cell in taken}
        yield from (f"{_name(panel)}: overlaps {other}" for other in sorted(others))
        taken.update(dict.fromkeys(cells, panel))


def _variable_faults(dashboard: Json) -> Iterator[str]:
    defined = [variable["name"] for variable in dashboard["templating"]["list"]]
    yield from (
        f"variable {name} is defined twice" for name, n in Counter(defined).items() if n > 1
    )
    used = {name for text in _texts(dashboard) for name in variables(text)}
    used = {name for name in used if not _BUILT_IN.fullmatch(name)} | {"datasource"}
    yield from (f"${name} is used but not defined" for name in sorted(used - set(defined)))
    yield from (f"variable {name} is not used" for name in sorted(set(defined) - used))


def _variable_query_faults(
    query: str, sources: Mapping[str, Source]
) -> tuple[list[str], frozenset[str]]:
    found = _LABEL_VALUES.fullmatch(query)
    if found is None:
        return [f"{query!r} is not label_values(SERIES, LABEL)"], frozenset()
    series, label = found.groups()
    analysis = analyze(series, sources)
    faults = list(analysis.problems)
    if label not in analysis.answer.labels:
        faults.append(f"{series} has no label {label}")
    return faults, analysis.names


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in {"description", "definition"}:
                yield from _texts(inner)
    elif isinstance(value, Iterable):
        for inner in value:
            yield from _texts(inner)


def _panel_faults(panel: Json) -> Iterator[str]:
    if not panel["targets"]:
        yield "has no query"
    letters = [target["refId"] for target in panel["targets"]]
    if letters != [chr(ord("A") + place) for place in range(len(letters))]:
        yield f"its queries must be called A, B, C and so on, not {', '.join(letters)}"
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    values = [step["value"] for step in steps]
    if values and (values[0] is not None or None in values[1:]):
        yield "the first threshold, and no other, has the value null"
    elif any(low >= high for low, high in pairwise(values[1:])):
        yield f"thresholds must increase: {values[1:]}"


def _query_faults(panel: Json, target: Json, analysis: Analysis) -> Iterator[str]:
    expr, answer, instant = target["expr"], analysis.answer, target["instant"]
    for window in sorted(windows(expr) - _WINDOWS):
        yield f"[{window}] is a fixed window; use [$__rate_interval]"
    if answer.series(instant=instant) > MAX_SERIES:
        yield (
            f"may return {answer.series(instant=instant)} series; at most {MAX_SERIES} are allowed"
        )
    if instant == target["range"]:
        yield "must be either an instant or a range query"
    yield from _legend_faults(panel, target, analysis)


def _legend_faults(panel: Json, target: Json, analysis: Analysis) -> Iterator[str]:
    answer, kind, form = analysis.answer, panel["type"], target["format"]
    legend, spread = set(_LABEL.findall(target["legendFormat"])), answer.spread()
    for label in sorted(legend - set(answer.labels)):
        yield f"the legend uses the label {label}, which the result does not have"
    expected = {"heatmap": "heatmap", "table": "table"}.get(kind, "time_series")
    if form != expected:
        yield f"a {kind} does not read the format {form}"
    if kind == "table":
        return
    if spread - legend:
        yield f"the legend does not distinguish series that differ in {', '.join(sorted(spread))}"
    if not target["legendFormat"]:
        yield "has no legend"
    if kind == "stat" and spread:
        yield f"shows one number, but the query has one for each {', '.join(sorted(spread))}"
    if kind == "heatmap" and spread != {"le"}:
        yield "a heatmap needs the label le and no other"

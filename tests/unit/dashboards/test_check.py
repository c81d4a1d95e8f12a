"""The check of dashboards finds nothing in ours, and each of many single faults put into them."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from moe_megatron.dashboards import check as module
from moe_megatron.dashboards import check_rules as rules_module
from moe_megatron.dashboards.artifacts import dashboard_json
from moe_megatron.dashboards.check import all_panels, check, check_dashboard
from moe_megatron.dashboards.check_rules import check_rules
from moe_megatron.dashboards.promql import exported
from moe_megatron.dashboards.rules import Thresholds, alerts, recording_rules
from moe_megatron.telemetry.catalog import metrics
from moe_megatron.telemetry.metric import Metric

DASHBOARDS = dashboard_json()
SOURCES = exported() | check_rules(Thresholds()).sources

Json = dict[str, Any]


def panel(dashboard: Json, title: str, kind: str | None = None) -> Json:
    found = [p for p in all_panels(dashboard) if p["title"] == title and kind in {None, p["type"]}]
    return found[0]


def target(dashboard: Json, title: str, kind: str | None = None) -> Json:
    return panel(dashboard, title, kind)["targets"][0]


def variable(dashboard: Json, name: str) -> Json:
    return next(v for v in dashboard["templating"]["list"] if v["name"] == name)


def edit(title: str, old: str, new: str, kind: str | None = None) -> Callable[[Json], None]:
    """Replaces text in the first query of a panel; all of it if `old` is empty."""

    def change(dashboard: Json) -> None:
        query = target(dashboard, title, kind)
        assert old in query["expr"]
        query["expr"] = query["expr"].replace(old, new) if old else new

    return change


def put(value: Any, *path: str | int, title: str | None = None) -> Callable[[Json], None]:
    """Sets what stands at a path, in the panel of that title."""

    def change(dashboard: Json) -> None:
        place = dashboard if title is None else panel(dashboard, title)
        for key in path[:-1]:
            place = place[key]
        assert isinstance(place, list) or place.get(path[-1]) != value
        place[path[-1]] = value

    return change


def drop(*path: str | int, title: str) -> Callable[[Json], None]:
    def change(dashboard: Json) -> None:
        place = panel(dashboard, title)
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def rename(old: str, new: str, *path: str | int, title: str) -> Callable[[Json], None]:
    def change(dashboard: Json) -> None:
        place = panel(dashboard, title)
        for key in path:
            place = place[key]
        place[new] = place.pop(old)

    return change


def put_in_variable(name: str, key: str, value: Any) -> Callable[[Json], None]:
    return lambda dashboard: variable(dashboard, name).update({key: value})


def remove_variable(name: str) -> Callable[[Json], None]:
    def change(dashboard: Json) -> None:
        dashboard["templating"]["list"].remove(variable(dashboard, name))

    return change


RUN = 'job="moe-train",cluster="$cluster",run="$run"'
ROUTER = "moe_router_entropy_ratio"
DEFAULTS = ("fieldConfig", "defaults")
LEAST_BUSY = "Least busy expert"
ACROSS = "Imbalance across layers"
ALL = "Load of all experts of all layers"

MUTANTS = {
    # name: (what is done to the routing dashboard, what the check says)
    "unknown metric": (edit(LEAST_BUSY, "moe_expert", "moe_xpert"), "not exported by any run"),
    "label that the metric lacks": (
        edit("Router entropy", f"{ROUTER}{{", f'{ROUTER}{{expert="1",'),
        "has no label expert",
    ),
    "aggregation by a label that is not there": (
        edit("Router entropy", "by (layer)", "by (layer, expert)"),
        "by expert: there is no such label",
    ),
    "legend of a label that is gone": (
        put("layer {{layers}}", "targets", 0, "legendFormat", title=LEAST_BUSY),
        "the legend uses the label layers",
    ),
    "legend that does not tell lines apart": (
        put("all", "targets", 0, "legendFormat", title=ACROSS),
        "does not distinguish series",
    ),
    "no legend": (
        put("", "targets", 0, "legendFormat", title=LEAST_BUSY),
        "has no legend",
    ),
    "another clock": (edit("Router entropy", "max by", "time() - max by"), "export an age"),
    "syntax": (edit("Router entropy", "max by", "max bye"), "is not PromQL"),
    "unbalanced": (edit("Router entropy", "})", "}"), "is not PromQL"),
    "counter without rate": (
        edit("Assignments per second", "", f"sum(moe_tokens_routed_total{{{RUN}}})"),
        "needs rate",
    ),
    "rate of a gauge": (
        edit("Router entropy", "", f"max by (layer) (rate({ROUTER}{{{RUN}}}[$__rate_interval]))"),
        "is a gauge",
    ),
    "fixed window": (edit("Assignments per second", "$__rate_interval", "5m"), "fixed window"),
    "other run": (edit("Router entropy", ',run="$run"', ""), "must select the run"),
    "selector without matchers": (
        edit("Router entropy", f"{{{RUN}}}", ""),
        "must select the run",
    ),
    "quantile without le": (
        edit(
            LEAST_BUSY,
            "",
            "histogram_quantile(0.5, sum by (layer) "
            f"(rate(moe_expert_load_ratio_bucket{{{RUN}}}[$__rate_interval])))",
        ),
        "needs the label le",
    ),
    "heatmap without le": (edit(ALL, "by (le)", "by (layer)"), "needs the label le"),
    "many to one": (
        edit("Dead experts by layer", "on (layer) ", ""),
        None,  # both sides have the label layer alone, so this is right
    ),
    "many to many": (
        edit("Dead experts by layer", "on (layer)", "on ()"),
        "many series for one",
    ),
    "sides that never match": (
        edit("Dropped", "", f"max by (layer) (moe_experts{{{RUN}}}) / max(moe_experts{{{RUN}}})"),
        "never matches",
    ),
    "too many series": (
        edit(
            LEAST_BUSY,
            "",
            f"sum by (layer, expert) (rate(moe_expert_tokens_total{{{RUN}}}[$__rate_interval]))",
        ),
        "may return 15616 series",
    ),
    "topk that bounds nothing over a range": (
        edit(
            LEAST_BUSY,
            "",
            "topk(5, sum by (layer, expert) "
            f"(rate(moe_expert_tokens_total{{{RUN}}}[$__rate_interval])))",
        ),
        "may return 15616 series",
    ),
    "many numbers in one": (edit("Busiest expert", "max(", "max by (layer) ("), "one number"),
    "no expression": (put("", "targets", 0, "expr", title=LEAST_BUSY), "must be a text"),
    "opacity of more than everything": (
        put(300, *DEFAULTS, "custom", "fillOpacity", title="Router entropy"),
        "must be a whole number from 0 to 100, not 300",
    ),
    "misspelt expression": (
        rename("expr", "exprs", "targets", 0, title=LEAST_BUSY),
        "unknown key 'exprs'",
    ),
    "no query": (put([], "targets", title=LEAST_BUSY), "has no query"),
    "same letter twice": (
        put("A", "targets", 1, "refId", title="Assignments per second"),
        "must be called A, B, C",
    ),
    "neither instant nor range": (put(False, "targets", 0, "range", title=LEAST_BUSY), "either"),
    "wrong format": (put("time_series", "targets", 0, "format", title=ALL), "does not read"),
    "no unit": (drop(*DEFAULTS, "unit", title=LEAST_BUSY), "'unit' is missing"),
    "unknown unit": (put("percents", *DEFAULTS, "unit", title=LEAST_BUSY), "is not a unit"),
    "no description": (put(" ", "description", title=LEAST_BUSY), "must be a text"),
    "thresholds out of order": (
        put(9.0, *DEFAULTS, "thresholds", "steps", 1, "value", title="Load entropy"),
        "thresholds must increase",
    ),
    "unknown colour": (
        put("gren", *DEFAULTS, "thresholds", "steps", 1, "color", title="Load entropy"),
        "must be one of",
    ),
    "type of panel": (put("graph", "type", title=LEAST_BUSY), "no panel of type 'graph'"),
    "unknown key of a panel": (rename("title", "titel", title=LEAST_BUSY), "unknown key 'titel'"),
    "unknown option": (
        put(True, "options", "sortBy", title=LEAST_BUSY),
        "unknown key 'sortBy'",
    ),
    "value of an option": (
        put("multiple", "options", "tooltip", "mode", title=LEAST_BUSY),
        "must be one of",
    ),
    "style of drawing": (
        put("lines", *DEFAULTS, "custom", "drawStyle", title=LEAST_BUSY),
        "must be one of",
    ),
    "text for a number": (put("1", *DEFAULTS, "custom", "lineWidth", title=LEAST_BUSY), "type int"),
    "too wide": (put(25, "gridPos", "w", title=ALL), "does not fit"),
    "overlap": (put(0, "gridPos", "x", title=LEAST_BUSY), "overlaps"),
    "same id twice": (put(1, "id", title=LEAST_BUSY), "have the id 1"),
    "hard-coded data source": (
        put({"type": "prometheus", "uid": "prometheus"}, "datasource", title=LEAST_BUSY),
        "must be the variable",
    ),
    "hard-coded data source of a query": (
        put({"type": "prometheus", "uid": "x"}, "targets", 0, "datasource", title=LEAST_BUSY),
        "must be the variable",
    ),
    "undefined variable": (edit("Router entropy", "$run", "$runs"), "$runs is used but not"),
    "variable that is gone": (remove_variable("cluster"), "$cluster is used but not defined"),
    "variable without use": (
        lambda d: d["templating"]["list"].append(variable(d, "run") | {"name": "rank"}),
        "variable rank is not used",
    ),
    "variable of a metric that is gone": (
        put_in_variable("run", "query", {"query": "label_values(moe_info, run)", "refId": "run"}),
        "not exported by any run",
    ),
    "variable of a label that is gone": (
        put_in_variable(
            "run", "query", {"query": "label_values(moe_run_info, rank)", "refId": "run"}
        ),
        "has no label rank",
    ),
    "variable read once": (put_in_variable("run", "refresh", 0), "must be one of"),
    "long uid": (put("x" * 41, "uid"), "must be 1 to 40"),
    "refresh without unit": (put(30, "refresh"), "must be a time"),
    "editable": (put(True, "editable"), "must be one of"),
    "annotation of a metric that is gone": (
        put("max(moe_restart_time) * 1000", "annotations", "list", 0, "expr"),
        "annotation Start: moe_restart_time is not exported",
    ),
    "annotation without a colour": (
        lambda d: d["annotations"]["list"][0].pop("iconColor"),
        "'iconColor' is missing",
    ),
    "link without variables": (put(False, "links", 0, "includeVars"), "must be one of"),
}


def test_dashboards_and_rules_of_the_repository_have_no_fault():
    assert check(DASHBOARDS) == []


@pytest.mark.parametrize("name", MUTANTS)
def test_single_fault_is_found(name):
    change, words = MUTANTS[name]
    dashboard = copy.deepcopy(DASHBOARDS["routing.json"])
    change(dashboard)
    assert dashboard != DASHBOARDS["routing.json"]
    faults, _ = check_dashboard(dashboard, SOURCES)
    if words is None:
        assert faults == []
    else:
        assert any(words in fault for fault in faults), faults


FLEET_MUTANTS = {
    "other clusters": ('cluster="$cluster",run=~"$runs"', 'run=~"$runs"', "every selector must"),
    "one line for all runs": (
        "max by (run) (moe_train_lm", "max by (job) (moe_train_lm", "uses the label run, which"
    ),
    "runs without a legend": ("{{run}}", "all", "does not distinguish series that differ in run"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLEET_MUTANTS)
def test_single_fault_of_the_fleet_is_found(name):
    old, new, words = FLEET_MUTANTS[name]
    before = json.dumps(DASHBOARDS["fleet.json"])
    after = before.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    assert after != before
    faults, _ = check_dashboard(json.loads(after), SOURCES)
    assert any(words in fault for fault in faults), faults


def test_two_dashboards_with_one_uid_are_found():
    cost = DASHBOARDS["cost.json"] | {"uid": DASHBOARDS["routing.json"]["uid"]}
    assert any("the uid of 2" in fault for fault in check(DASHBOARDS | {"cost.json": cost}))


def test_metric_that_nothing_shows_is_found(monkeypatch):
    extra = Metric(name="moe_train_mood_ratio", type="gauge", unit="ratio", help="Not shown.")
    monkeypatch.setattr(module, "metrics", lambda: (*metrics(), extra))
    assert check(DASHBOARDS) == [
        "moe_train_mood_ratio is in the catalog but in no panel or rule; show it, or do not export "
        "it"
    ]


@pytest.mark.parametrize("metric", metrics(), ids=lambda m: m.name)
def test_every_panel_of_a_metric_that_leaves_the_catalog_is_found(metric):
    """Removing any metric from what is exported breaks at least one panel or rule."""
    names = {metric.name, *(f"{metric.name}_{part}" for part in ("bucket", "sum", "count"))}
    sources = {name: source for name, source in SOURCES.items() if name not in names}
    faults = [fault for one in DASHBOARDS.values() for fault in check_dashboard(one, sources)[0]]
    assert any(re.search(rf"{metric.name}\w* is not exported", fault) for fault in faults)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expr": f"max by (job, cluster, run) ({ROUTER}s) > 1"}, "not exported by any run"),
        ({"expr": f"max by (job, cluster, run) ({ROUTER}) >"}, "is not PromQL"),
        ({"expr": f"max({ROUTER}) > 1"}, "must keep the labels job, cluster, run"),
        ({"expr": "sum by (job, cluster, run) (moe_tokens_dropped_total) > 1"}, "needs rate()"),
        ({"expr": f"time() - max by (job, cluster, run) ({ROUTER}) > 1"}, "export an age"),
        (
            {"summary": "{{ $labels.rank }} is slow"},
            "its text uses the label rank, which it does not have",
        ),
    ],
)
def test_fault_of_an_alert_is_found(monkeypatch, change, words):
    faulty = replace(alerts(Thresholds())[0], **change)
    monkeypatch.setattr(rules_module, "alerts", lambda limits: [*alerts(limits), faulty])
    assert [fault for fault in check(DASHBOARDS) if words in fault and faulty.name in fault] != []


def test_rule_that_nothing_uses_is_found(monkeypatch):
    rules = {"run:moe_train_devices:max": "max by (job, cluster, run) (moe_train_devices)"}
    more = lambda limits: recording_rules(limits) | rules  # noqa: E731
    monkeypatch.setattr(rules_module, "recording_rules", more)
    assert check(DASHBOARDS) == ["run:moe_train_devices:max is recorded but never used"]

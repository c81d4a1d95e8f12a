"""What the check finds out about an expression without running it."""

import pytest

from moe_megatron.dashboards.promql import LARGEST, Source, analyze, exported, variables, windows

SOURCES = {
    "load": Source({"run": 1, "layer": 61, "expert": 256}),
    "limit": Source({"run": 1, "layer": 61}),
    "tokens_total": Source({"run": 1, "layer": 61}, counter=True),
    "seconds_bucket": Source({"run": 1, "le": 12}, counter=True),
}


@pytest.mark.parametrize(
    ("expr", "labels", "series"),
    [
        ("load", {"run", "layer", "expert"}, 61 * 256),
        ('load{layer="3"}', {"run", "layer", "expert"}, 256),
        ("max by (layer) (load)", {"layer"}, 61),
        ("max without (expert) (load)", {"run", "layer"}, 61),
        ("max(load)", set(), 1),
        ("load > 2", {"run", "layer", "expert"}, 61 * 256),
        ("rate(tokens_total[1m])", {"run", "layer"}, 61),
        ("load / on (run, layer) group_left () limit", {"run", "layer", "expert"}, 61 * 256),
        ("max by (layer) (load) / on (layer) limit", {"layer"}, 61),
        ("max by (run, layer) (load) and limit", {"run", "layer"}, 61),
        ("max(load) or vector(0)", set(), 1),
        ("histogram_quantile(0.9, sum by (le) (rate(seconds_bucket[1m])))", set(), 1),
        ("3 - max(limit)", set(), 1),
        ("-limit", {"run", "layer"}, 61),
        ("1 + 2", set(), 1),
    ],
)
def test_labels_and_series_of_an_answer(expr, labels, series):
    analysis = analyze(expr, SOURCES)
    assert analysis.problems == ()
    assert set(analysis.answer.labels) == labels
    assert analysis.answer.series() == series


def test_topk_bounds_an_instant_and_not_a_range():
    answer = analyze("topk(5, load)", SOURCES).answer
    assert answer.series(instant=True) == 5
    assert answer.series() == 61 * 256


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("other", "other is not exported"),
        ('load{rank="1"}', "load has no label rank"),
        ("sum by (rank) (load)", "sum by rank: there is no such label"),
        ("tokens_total", "is a counter and needs rate() or increase()"),
        ("rate(load[1m])", "is a gauge, which rate() does not accept"),
        ("sum(load", "is not PromQL: unclosed left parenthesis"),
        ("histogram_quantile(0.5, sum by (run) (rate(seconds_bucket[1m])))", "needs the label le"),
        ("load / limit", "never matches: only one side has expert"),
        ("load / on (layer) limit", "the left side of '/' has many series for one"),
        ("limit / on (rank) limit", "on (rank): only one side"),
        ("time() - max(limit)", "time() is the clock of Prometheus' machine"),
        ("timestamp(limit) > 1", "export an age instead"),
        ("avg_over_time(limit[1h:1m])", "is not understood by this check"),
    ],
)
def test_problem_of_an_expression(expr, problem):
    assert any(problem in found for found in analyze(expr, SOURCES).problems)


def test_exported_names_are_those_of_the_largest_run():
    sources = exported()
    assert sources["moe_expert_tokens_total"].counter
    assert sources["moe_expert_tokens_total"].labels["expert"] == LARGEST.experts
    assert "moe_expert_load_ratio" not in sources
    assert sources["moe_expert_load_ratio_bucket"].labels["le"] == 14
    assert set(sources["moe_run_info"].labels.values()) == {1}


def test_variables_and_windows_are_read_from_text():
    assert variables('a{b="$run"}[$__range] ${layer} ${x:queryparam} ${__field.labels.y}') == {
        "run", "__range", "layer", "x", "__field.labels.y",
    }  # fmt: skip
    assert windows('rate(a{b="[5m]"}[$__range]) + b[1h:1m]') == {"$__range", "1h:1m"}

"""The catalog against its own rules, STYLE.md's, and what is really exported."""

import re
from dataclasses import replace

import pytest

from moe_megatron.telemetry.catalog import (
    BY_NAME,
    METRICS,
    ExpertDetail,
    Shape,
    fitting_detail,
    num_series,
)

LARGE = Shape(layers=61, experts=256, ranks=256, expert_ranks=64)


def test_names_are_unique_and_spelled_as_prometheus_wants() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"moe(_[a-z0-9]+)+", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert bool(metric.buckets) == (metric.type == "histogram"), metric.name
        assert metric.help.endswith("."), metric.name


@pytest.mark.parametrize("unit", ["seconds", "bytes", "ratio"])
def test_unit_is_in_the_name(unit: str) -> None:
    for metric in METRICS:
        stem = metric.name.removesuffix("_total")
        assert (metric.unit == unit) == stem.endswith(f"_{unit}"), metric.name


def test_default_detail_of_a_large_model_stays_below_3000_series() -> None:
    assert num_series(LARGE) <= 3000
    assert num_series(replace(LARGE, detail=ExpertDetail.FULL)) > 61 * 256


def test_series_grow_with_the_detail() -> None:
    numbers = [num_series(replace(LARGE, detail=detail)) for detail in ExpertDetail]
    assert numbers == sorted(set(numbers))


def test_dense_model_has_no_series_of_layers() -> None:
    dense = Shape(layers=0, experts=0, ranks=2)
    assert all(m.series(dense) == 0 for m in METRICS if {"layer", "ep_rank"} & set(m.labels))


def test_many_ranks_are_not_named() -> None:
    assert BY_NAME["moe_rank_compute_seconds"].series(replace(LARGE, ranks=257)) == 0


def test_formula_says_what_series_computes() -> None:
    for metric in METRICS:
        if metric.name == "moe_run_info":
            assert metric.formula == "1"
            continue
        full = replace(LARGE, detail=ExpertDetail.FULL)
        product = 1
        for factor in metric.formula.split(" x "):
            product *= int(factor) if factor.isdecimal() else full.label_values(factor)
        assert metric.series(full) == product, metric.name


@pytest.mark.parametrize(
    ("max_series", "expected"),
    [
        (100_000, ExpertDetail.FULL),
        (5000, ExpertDetail.TOPK),
        (2500, ExpertDetail.HISTOGRAM),
        (1500, ExpertDetail.NONE),
        (100, None),
    ],
)
def test_detail_is_lowered_to_what_fits(max_series: int, expected: ExpertDetail | None) -> None:
    assert fitting_detail(replace(LARGE, detail=ExpertDetail.FULL), max_series) == expected


def test_detail_is_not_raised_above_what_was_asked_for() -> None:
    assert fitting_detail(replace(LARGE, detail=ExpertDetail.NONE), 10**6) == ExpertDetail.NONE

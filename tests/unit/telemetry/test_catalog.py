"""The catalog against its own rules, STYLE.md's, and what is really exported."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.catalog import (
    find_metric,
    fitting_detail,
    metrics,
    num_series,
    quantities,
    quantity_names,
    register,
    registered,
    unregister,
)
from moe_megatron.telemetry.metric import ExpertDetail, Shape
from moe_megatron.telemetry.quantity import Quantity

LARGE = Shape(layers=61, experts=256, ranks=256, expert_ranks=64)


def test_names_are_unique_and_spelled_as_prometheus_wants() -> None:
    assert len({metric.name for metric in metrics()}) == len(metrics())
    for metric in metrics():
        assert re.fullmatch(r"moe(_[a-z0-9]+)+", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert bool(metric.buckets) == (metric.type == "histogram"), metric.name
        assert metric.help.endswith("."), metric.name


@pytest.mark.parametrize("unit", ["seconds", "bytes", "ratio"])
def test_unit_is_in_the_name(unit: str) -> None:
    for metric in metrics():
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
    assert all(m.series(dense) == 0 for m in metrics() if {"layer", "ep_rank"} & set(m.labels))


def test_many_ranks_are_not_named() -> None:
    metric = find_metric("moe_rank_compute_seconds")
    assert metric is not None
    assert metric.series(replace(LARGE, ranks=257)) == 0


def test_formula_says_what_series_computes() -> None:
    for metric in metrics():
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
        (2800, ExpertDetail.HISTOGRAM),
        (1800, ExpertDetail.NONE),
        (100, None),
    ],
)
def test_detail_is_lowered_to_what_fits(max_series: int, expected: ExpertDetail | None) -> None:
    assert fitting_detail(replace(LARGE, detail=ExpertDetail.FULL), max_series) == expected


def test_detail_is_not_raised_above_what_was_asked_for() -> None:
    assert fitting_detail(replace(LARGE, detail=ExpertDetail.NONE), 10**6) == ExpertDetail.NONE


SPREAD = Quantity(
    name="load_spread",
    help="Largest less smallest count.",
    title="Spread of the load",
    derive=lambda sums: np.ptp(sums.tokens_per_expert, axis=1).astype(np.float64),
    gauge="moe_load_spread",
)


def test_registered_quantity_is_in_every_list_and_gone_after_the_block() -> None:
    before = (quantities(), metrics(), num_series(LARGE))
    with registered(SPREAD):
        assert quantities() == (*before[0], SPREAD)
        assert quantity_names()[-1] == "load_spread"
        metric = find_metric("moe_load_spread")
        assert metric in metrics()
        assert metric is not None
        assert (metric.type, metric.labels, metric.help) == ("gauge", ("layer",), SPREAD.help)
        assert num_series(LARGE) == before[2] + 61
    assert (quantities(), metrics(), num_series(LARGE)) == before
    assert find_metric("moe_load_spread") is None


def test_quantity_without_gauge_adds_no_metric() -> None:
    with registered(replace(SPREAD, gauge=None)):
        assert "moe_load_spread" not in {metric.name for metric in metrics()}


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (replace(SPREAD, name="entropy"), "there is already a quantity 'entropy'"),
        (replace(SPREAD, name="other"), "the gauge 'moe_load_spread' .* has the name of another"),
        (replace(SPREAD, name="other", gauge="moe_experts"), "'moe_experts' .* another metric"),
        (
            replace(SPREAD, name="other", gauge="moe_router_z_loss"),
            "gauge 'moe_router_z_loss'",
        ),
    ],
)
def test_register_taken_name_is_refused_and_changes_nothing(
    quantity: Quantity, message: str
) -> None:
    with registered(SPREAD):
        before = quantities()
        with pytest.raises(ConfigError, match=message):
            register(quantity)
        assert quantities() == before
    with pytest.raises(ConfigError, match=message), registered(SPREAD, quantity):
        pass
    assert SPREAD not in quantities()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("z_loss", "'z_loss' is built in and cannot be unregistered"),
        ("load_spread", "no quantity 'load_spread' is registered; registered are entropy"),
    ],
)
def test_unregister_built_in_or_unknown_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unregister(name)


PACKAGE = Path(__file__).parents[3] / "moe_megatron"
DECLARES = "where the quantities are declared"
PUBLIC = "named fields that users were promised"
COMPUTES = "computes the losses of a model in training, before there are quantities"
ANY_ENTROPY = "the entropy of any distribution"
COLUMN = "a column of the table of a bench"
METHOD = "'aux_loss' is also one of Megatron's methods of load balancing"
ANSWERS = "a field of what the dashboard answers"
ALERTS = "an alert on one of them"
MAY_NAME: dict[str, tuple[str, set[str]]] = {
    "telemetry/catalog.py": (DECLARES, {"entropy", "aux_loss", "z_loss"}),
    "telemetry/values/expert_load.py": (ANY_ENTROPY, {"entropy"}),
    "telemetry/values/layer_values.py": (ANY_ENTROPY, {"entropy"}),
    "benchmarks/one_run.py": (COLUMN, {"entropy"}),
    "benchmarks/table_rows.py": (COLUMN, {"entropy"}),
    "analytics/information.py": (ANY_ENTROPY, {"entropy"}),
    "analytics/monitor.py": (PUBLIC, {"entropy", "aux_loss", "z_loss"}),
    "model/outputs.py": (PUBLIC, {"aux_loss", "z_loss"}),
    "mcore/layers/router_losses.py": (COMPUTES, {"aux_loss", "z_loss"}),
    "mcore/measure/router_loss_log.py": (COMPUTES, {"aux_loss"}),
    "routing/balancing.py": (METHOD, {"aux_loss"}),
    "routing/info.py": (PUBLIC, {"entropy", "aux_loss", "z_loss"}),
    "routing/load_balancer.py": (METHOD, {"aux_loss"}),
    "model/language_model.py": (COMPUTES, {"aux_loss", "z_loss"}),
    "routing/losses.py": (COMPUTES, {"z_loss"}),
    "routing/__init__.py": (COMPUTES, {"z_loss"}),
    "config/moe.py": (METHOD, {"aux_loss"}),
    "families/family.py": (METHOD, {"aux_loss"}),
    "model/support.py": (METHOD, {"aux_loss"}),
    "run/collapse.py": (METHOD, {"aux_loss"}),
    "dashboards/rules.py": (ALERTS, {"entropy"}),
    "dashboards/rule_tests.py": (ALERTS, {"entropy"}),
    "testing/written_run.py": (ANSWERS, {"entropy", "z_loss"}),
    "webapp/news.py": (ANSWERS, {"entropy"}),
    "webapp/over_time.py": (ANSWERS, {"entropy", "z_loss"}),
}


OF_THE_LOAD = re.compile("load entropy|entropy of the experts' load", re.IGNORECASE)


def words_of(file: Path) -> set[str]:
    """Identifiers, and words of strings; not of comments and docstrings, nor "load entropy"."""
    tree = ast.parse(file.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    words: set[str] = set()
    for node in ast.walk(tree):
        if id(node) not in prose:
            # Names, attributes, arguments, functions and constants keep their text in fields.
            texts = [text for _, text in ast.iter_fields(node) if isinstance(text, str)]
            words.update(*(re.findall(r"\w+", OF_THE_LOAD.sub("", text)) for text in texts))
    return words


def test_only_code_with_a_reason_names_a_quantity() -> None:
    """Whoever counts, keeps or shows quantities goes through the catalog."""
    names = set(quantity_names())
    found = {
        str(file.relative_to(PACKAGE)): words_of(file) & names for file in PACKAGE.rglob("*.py")
    }
    assert {file: which for file, which in found.items() if which} == {
        file: which for file, (_, which) in MAY_NAME.items()
    }


def test_words_of_a_file_are_those_of_its_code(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(
        '"""An entropy."""\ntotal = row.z_loss + get(f"{x} aux_loss")  # entropy\n'
    )
    assert words_of(tmp_path / "code.py") & set(quantity_names()) == {"z_loss", "aux_loss"}

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

from moe_megatron.telemetry.catalog import registered
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.sinks.load_table import describe_dead_experts, load_bars, load_table
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

Make = Callable[..., RoutingSnapshot]


def draw(load: RoutingSnapshot, width: int = 80, max_rows: int | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as text:
        console.print(load_table(load, width=width, max_rows=max_rows))
    lines = [line.rstrip() for line in text.get().splitlines()]
    assert all(len(line) <= width and "\u2026" not in line for line in lines)
    return lines


def loads(make: Make, rows: list[list[int]], lost: int = 0, **more: Any) -> RoutingSnapshot:
    total = sum(rows[0]) + lost
    return make(
        layers=tuple(range(1, len(rows) + 1)),
        tokens=total,
        top_k=1,
        tokens_per_expert=np.array(rows),
        dropped=np.full(len(rows), lost),
        per_layer={
            "entropy": np.full(len(rows), np.log(len(rows[0]))),
            "aux_loss": np.ones(len(rows)),
            "z_loss": np.ones(len(rows)),
            **more,
        },
    )


def test_few_experts_show_percent(make_snapshot: Make) -> None:
    lines = draw(loads(make_snapshot, [[50, 30, 20, 0]]))
    assert lines[0].split() == ["layer", "e0", "e1", "e2", "e3", "max/mean", "entropy", "dead"]
    assert lines[1].split() == ["1", "50%", "30%", "20%", "0%", "2.00", "1.00", "1"]


def test_quantity_with_a_heading_is_a_column_where_it_was_measured(make_snapshot: Make) -> None:
    heading = Quantity(
        name="margin",
        help="For a test.",
        title="Margin",
        derive=lambda sums: sums.means["entropy"],
        column="how sure",
    )
    rows = [[50, 30, 20, 0]]
    with registered(heading):
        lines = draw(loads(make_snapshot, rows, margin=np.array([0.125])))
        without = draw(loads(make_snapshot, rows))
    assert lines[0].endswith("max/mean  entropy  how sure  dead")
    assert lines[1].split()[-4:] == ["2.00", "1.00", "0.12", "1"]
    assert without == draw(loads(make_snapshot, rows))


def test_drops_show_only_when_there_are_any(make_snapshot: Make) -> None:
    lines = draw(loads(make_snapshot, [[50, 25]], lost=25))
    assert lines[0].endswith("dropped")
    assert lines[1].endswith("25.0%")


def test_sixteen_experts_show_bars_where_percent_does_not_fit(make_snapshot: Make) -> None:
    snapshot = loads(make_snapshot, [[10] * 16])
    assert "\u2585" * 16 in draw(snapshot, width=80)[1]
    assert draw(snapshot, width=130)[1].count("6%") == 16


def test_many_experts_show_extremes(make_snapshot: Make) -> None:
    lines = draw(loads(make_snapshot, [[0] * 10 + [10] * 10 + [30] * 10 + [10] * 10]))
    assert lines[0].split()[:4] == ["layer", "min", "median", "max"]
    assert lines[1].split()[:4] == ["1", "0.00x", "0.80x", "2.40x"]


def test_too_many_layers_show_the_most_imbalanced_in_order(make_snapshot: Make) -> None:
    rows = [[10, 10], [20, 0], [11, 9], [0, 20]]
    lines = draw(loads(make_snapshot, rows), max_rows=2)
    assert [line.split()[0] for line in lines[1:3]] == ["2", "4"]
    assert lines[3] == "the 2 most imbalanced of 4 layers"


def test_bars_have_an_ascii_form() -> None:
    assert load_bars(np.array([0.0, 1.0, 9.0, np.nan]), unicode=False).plain == "_=#_"


def test_describe_dead_experts(make_snapshot: Make) -> None:
    def describe(rows: list[list[int]]) -> str:
        load = loads(make_snapshot, rows)
        return describe_dead_experts(load.layers, load.dead_expert_mask())

    assert describe([[10, 10]]) == "none"
    text = describe([[20, 0], [10, 10], [0, 20]])
    assert text == "2 of 6 (layer 1: 1; layer 3: 0)"
    many = describe([[90] + [0] * 9] * 10)
    assert many.startswith("90 of 100 (layer 1: 1, 2, 3, 4, 5, 6, 7, 8, ...;")
    assert many.endswith("; and 2 more layers)")

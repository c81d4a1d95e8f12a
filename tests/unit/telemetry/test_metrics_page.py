"""docs/metrics.md and docs/telemetry.md list exactly what the catalog does."""

import re
from pathlib import Path

from moe_megatron.telemetry.catalog import RUN_INFO_LABELS, metrics, num_series, quantities
from moe_megatron.telemetry.metric import PHASES, ExpertDetail, Metric, Shape
from moe_megatron.telemetry.quantity import Quantity

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "metrics.md").read_text()


def row(metric: Metric) -> str:
    """The line that the page must hold for a metric."""
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
    if metric.name == "moe_run_info":
        labels = "see below"
    meaning = metric.help
    if metric.detail > ExpertDetail.NONE:
        meaning += f" From detail `{metric.detail.name.lower()}`."
    unit = metric.unit or "-"
    return f"| `{metric.name}` | {metric.type} | {unit} | {labels} | {metric.formula} | {meaning} |"


def test_tables_are_those_of_the_catalog() -> None:
    lines = [line for line in PAGE.splitlines() if re.match(r"\| `moe_\w+` \|", line)]
    assert lines == [row(metric) for metric in metrics()]


def test_labels_and_phases_are_named() -> None:
    assert [name for name in (*RUN_INFO_LABELS, *PHASES) if f"`{name}`" not in PAGE] == []


def test_number_of_series_of_the_example_is_right() -> None:
    shape = Shape(layers=61, experts=256, ranks=256, expert_ranks=64)
    assert f"has {num_series(shape):,} in the default detail" in PAGE


def quantity_row(quantity: Quantity) -> str:
    """The line that docs/telemetry.md must hold for a quantity."""
    origin = "tokens" if quantity.derive is None else "sums"
    gauge = f"`{quantity.gauge}`" if quantity.gauge else "-"
    unit = quantity.unit or "-"
    return f"| `{quantity.name}` | {unit} | {origin} | {gauge} | {quantity.help} |"


def test_telemetry_page_lists_the_quantities() -> None:
    page = (DOCS / "telemetry.md").read_text()
    chapter = page.partition("\n## Quantities\n")[2].partition("\n## ")[0]
    lines = [line for line in chapter.splitlines() if line.startswith("| `")]
    assert lines == [quantity_row(quantity) for quantity in quantities()]

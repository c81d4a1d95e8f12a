"""Expert load as a table for a terminal: one row per MoE layer.

With up to `MAX_COLUMNS` experts it shows each expert's share, as a percentage if the width allows
and otherwise as a bar; with more experts it shows minimum, median and maximum. It only draws: the
caller decides which steps the counts cover and when to print.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from rich.table import Table
from rich.text import Text

from moe_megatron.telemetry.catalog import quantities
from moe_megatron.telemetry.values.expert_load import BoolArray, Float64Array
from moe_megatron.telemetry.values.layer_values import shown_values
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

MAX_COLUMNS = 16
"""Above this many experts the table shows minimum, median and maximum."""

_FIXED_WIDTH, _DROPS_WIDTH, _PERCENT_WIDTH = 25, 9, 5  # characters of the columns, with padding
_PADDING = 2
_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_ASCII_BLOCKS = "_.:-=+*#"
_FULL_BLOCK = 2.0  # the relative load of a full bar: a fair share is half a block high
_HOT, _COLD = 1.5, 0.5  # a relative load outside these bounds is coloured


def style_of(relative: float) -> str:
    """Colour of a load relative to the fair share: red if busy, blue if idle, else none."""
    if relative >= _HOT:
        return "red"
    return "blue" if relative <= _COLD else ""


def load_bars(relative: Float64Array, *, unicode: bool) -> Text:
    """One character per expert; its height shows the load, a fair share being half height."""
    blocks = _BLOCKS if unicode else _ASCII_BLOCKS
    bars = Text()
    for value in relative:
        filled = 0.0 if np.isnan(value) else min(value / _FULL_BLOCK, 1.0)
        bars.append(blocks[round(filled * (len(blocks) - 1))], style=style_of(value))
    return bars


def load_table(
    load: RoutingSnapshot | RoutingProfile,
    *,
    width: int,
    max_rows: int | None = None,
    unicode: bool = True,
    dead: BoolArray | None = None,
) -> Table:
    """Draws the expert load of one step or of a sum of steps.

    Args:
        load: the counts.
        width: characters the table may take.
        max_rows: largest number of layers to show; of more, the most imbalanced ones.
        unicode: whether the terminal can show block characters.
        dead: the dead experts, by `RecentUse`; without it, those that these counts do not have.
    """
    num_experts = load.num_experts
    relative, imbalance = load.relative_load, load.imbalance
    columns = [
        (quantity.column, shown_values(quantity, load))
        for quantity in quantities()
        if quantity.column and quantity.name in load.per_layer
    ]
    number_dead = (load.dead_expert_mask() if dead is None else dead).sum(axis=1)
    drop_rate = load.drop_rate
    has_drops = bool(load.dropped.any())

    draw_shares: Callable[[Float64Array], list[Text]]
    if num_experts > MAX_COLUMNS:
        names, draw_shares = ["min", "median", "max"], _extremes
    elif (
        _width_of_others([name for name, _ in columns], has_drops) + _PERCENT_WIDTH * num_experts
        <= width
    ):
        names, draw_shares = [f"e{expert}" for expert in range(num_experts)], _percents
    else:
        names = [f"e0..{num_experts - 1}"]
        draw_shares = partial(_one_bar_each, unicode=unicode)
    names = ["layer", *names, "max/mean", *(name for name, _ in columns), "dead"] + [
        "dropped"
    ] * has_drops

    table = Table(box=None, pad_edge=False, padding=(0, _PADDING, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rows_to_show(imbalance, max_rows):
        table.add_row(
            str(load.layers[row]),
            *draw_shares(relative[row]),
            f"{imbalance[row]:.2f}",
            *(f"{values[row]:.2f}" for _, values in columns),
            Text(str(number_dead[row]), style="bold red" if number_dead[row] else ""),
            *([f"{drop_rate[row]:.1%}"] if has_drops else []),
        )
    if table.row_count < len(load.layers):
        table.caption = f"the {table.row_count} most imbalanced of {len(load.layers)} layers"
        table.caption_justify = "left"
    return table


def _width_of_others(columns: Iterable[str], has_drops: bool) -> int:
    """Width of all columns other than those of experts, in characters."""
    return _FIXED_WIDTH + sum(len(name) + _PADDING for name in columns) + _DROPS_WIDTH * has_drops


def _extremes(relative: Float64Array) -> list[Text]:
    values = (relative.min(), np.median(relative), relative.max())
    return [Text(f"{value:.2f}x", style=style_of(value)) for value in values]


def _percents(relative: Float64Array) -> list[Text]:
    return [Text(f"{value / relative.size:.0%}", style=style_of(value)) for value in relative]


def _one_bar_each(relative: Float64Array, *, unicode: bool) -> list[Text]:
    return [load_bars(relative, unicode=unicode)]


def _rows_to_show(imbalance: Float64Array, max_rows: int | None) -> list[int]:
    rows = list(range(len(imbalance)))
    if max_rows is None or len(rows) <= max_rows:
        return rows
    worst_first = np.argsort(-np.nan_to_num(imbalance, nan=0.0), kind="stable")
    return sorted(worst_first[:max_rows].tolist())


def describe_dead_experts(layers: Iterable[int], mask: BoolArray) -> str:
    """One line: "none", or the dead experts of each layer, for at most eight layers."""
    parts = [
        f"layer {layer}: {_first_eight(np.flatnonzero(row).tolist())}"
        for layer, row in zip(layers, mask, strict=True)
        if row.any()
    ]
    if not parts:
        return "none"
    more = f"; and {len(parts) - 8} more layers" if len(parts) > 8 else ""
    return f"{int(mask.sum())} of {mask.size} ({'; '.join(parts[:8])}{more})"


def _first_eight(experts: list[int]) -> str:
    shown = ", ".join(str(expert) for expert in experts[:8])
    return f"{shown}, ..." if len(experts) > 8 else shown

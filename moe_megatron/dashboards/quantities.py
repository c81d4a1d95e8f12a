"""The quantities of the catalog as Grafana shows them: title, unit and description.

It knows neither panels nor queries.
"""

from dataclasses import dataclass

from moe_megatron.telemetry.catalog import quantities

_UNITS = {"": "none", "nats": "none", "ratio": "percentunit", "seconds": "s", "bytes": "bytes"}
"""Grafana's identifiers of units; any other unit is shown after the number as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownQuantity:
    """An exported quantity as panels show it."""

    gauge: str
    title: str
    unit: str
    description: str
    in_tables: bool
    """Whether it has a column in tables, and so a place where there is little room."""


def shown_quantities() -> list[ShownQuantity]:
    """All quantities with a gauge, in the order of the catalog."""
    return [
        ShownQuantity(
            gauge=quantity.gauge,
            title=quantity.title,
            unit=_UNITS.get(quantity.shown_unit, f"suffix: {quantity.shown_unit}"),
            description=f"{quantity.shown_help} {quantity.note}".strip(),
            in_tables=quantity.column is not None,
        )
        for quantity in quantities()
        if quantity.gauge is not None
    ]

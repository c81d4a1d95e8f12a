"""The quantities of the catalog as Grafana shows them: title, unit and description.

It knows neither panels nor queries.
"""

from dataclasses import dataclass

from moe_megatron.telemetry.catalog import quantities

_UNITS = {"": "none", "nats": "none", "ratio": "percentunit", "seconds": "s", "bytes": "bytes"}
"""Grafana's identifiers; every other unit is written behind the number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownQuantity:
    """A quantity that is exported."""

    gauge: str
    title: str
    unit: str
    description: str
    in_tables: bool
    """Whether it is one of the few that stand where there is little room."""


def shown_quantities() -> list[ShownQuantity]:
    """Those with a gauge, in the order of the catalog."""
    return [
        ShownQuantity(
            gauge=one.gauge,
            title=one.title,
            unit=_UNITS.get(one.shown_unit, f"suffix: {one.shown_unit}"),
            description=f"{one.shown_help} {one.note}".strip(),
            in_tables=one.column is not None,
        )
        for one in quantities()
        if one.gauge is not None
    ]

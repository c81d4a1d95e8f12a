"""What can be told of each layer as one number for any window: balance, and measured quantities.

Quantities of the catalog have their title and note; others that a run has measured go under their
names. It knows profiles, not runs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from moe_megatron.telemetry.catalog import quantities
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.telemetry.values.layer_values import shown_values
from moe_megatron.telemetry.values.profile import RoutingProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerQuantity:
    """One number for each layer."""

    name: str
    title: str
    note: str
    values: Callable[[RoutingProfile], Float64Array]
    """NaN where it was not measured. [L]"""


def measured_quantities(names: Iterable[str]) -> list[LayerQuantity]:
    """Quantities that a run has measured: the known ones first, then the others by name.

    Args:
        names: Of the quantities.
    """
    left = set(names)
    found = []
    for quantity in quantities():
        if quantity.name in left:
            left.remove(quantity.name)
            found.append(_known(quantity))
    return found + [_unknown(name) for name in sorted(left)]


def varied_choice(profiles: Iterable[RoutingProfile]) -> LayerQuantity | None:
    """The number of experts that a token got; None where it is always `top_k`."""
    for it in profiles:
        if (it.assigned != it.tokens * it.top_k).any():
            return experts_per_token(it.top_k)
    return None


def experts_per_token(top_k: int) -> LayerQuantity:
    """The mean number of experts that a token got."""
    return LayerQuantity(
        name="experts_per_token",
        title="Experts per token",
        note=f"The target is {top_k}; dropped assignments are included.",
        values=lambda profile: profile.experts_per_token,
    )


IMBALANCE = LayerQuantity(
    name="imbalance",
    title="Imbalance (max over mean load)",
    note="1 is perfect balance; a layer waits for its busiest expert.",
    values=lambda profile: profile.imbalance,
)
DROPPED = LayerQuantity(
    name="drop_rate",
    title="Dropped assignments (share of all)",
    note="Assignments beyond the capacity of their expert, which skip the layer.",
    values=lambda profile: profile.drop_rate,
)


def _known(quantity: Quantity) -> LayerQuantity:
    unit = "relative to its maximum" if quantity.part_of_maximum else quantity.unit
    return LayerQuantity(
        name=quantity.name,
        title=f"{quantity.title} ({unit})" if unit else quantity.title,
        note=quantity.note,
        values=partial(shown_values, quantity),
    )


def _unknown(name: str) -> LayerQuantity:
    def values(profile: RoutingProfile) -> Float64Array:
        found = profile.per_layer.get(name)
        return np.full(len(profile.layers), np.nan) if found is None else found

    note = "A quantity that the run registered and that is not known here."
    return LayerQuantity(name=name, title=name, note=note, values=values)

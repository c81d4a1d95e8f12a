"""What a quantity must be, and what is said of one that is not."""

from typing import Any

import numpy as np
import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.quantity import Quantity, StepSums
from moe_megatron.telemetry.values.json_fields import Float64Array


def surprise(sums: StepSums) -> Float64Array:
    return np.zeros(len(sums.tokens_per_expert))


FIELDS: dict[str, Any] = {
    "name": "surprise",
    "help": "How much the load surprised.",
    "title": "Surprise",
    "derive": surprise,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Surprise"}, "'Surprise' cannot name a quantity: a name begins with"),
        ({"name": "2nd"}, "'2nd' cannot name a quantity"),
        ({"name": "a" * 41}, "at most 40 characters"),
        ({"name": "../surprise"}, r"'\.\./surprise' cannot name a quantity"),
        ({"name": "dropped"}, "'dropped' cannot name a quantity: it is the name of a count"),
        ({"derive": None}, "'surprise' needs either measure, .* or derive, .*; it has neither"),
        ({"measure": lambda routed: routed.entropy_T}, "either measure, .*; it has both"),
        ({"help": "Surprise"}, "'surprise' needs a help of one sentence .*, not 'Surprise'"),
        ({"title": " "}, "'surprise' needs a title"),
        ({"gauge": "surprise"}, "gauge 'surprise' .* needs a name like moe_router_surprise"),
        ({"gauge": "moe_router__surprise"}, "single underscores"),
        ({"gauge": "moe_surprise_total"}, "none of the endings _bucket, _count, _sum, _total"),
        ({"gauge": "moe_surprise_ratio"}, "must end in _ratio if and only if the unit is ratio"),
        ({"gauge": "moe_surprise", "part_of_maximum": True}, "in the unit 'ratio'"),
        ({"gauge": "moe_surprise", "unit": "seconds"}, "end in _seconds if and only if"),
    ],
)
def test_quantity_malformed_is_refused_with_the_reason(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Quantity(**(FIELDS | fields))


def test_part_of_maximum_is_shown_as_a_ratio() -> None:
    quantity = Quantity(**FIELDS, unit="nats", gauge="moe_surprise_ratio", part_of_maximum=True)
    assert quantity.shown_unit == "ratio"
    assert quantity.shown_help == "How much the load surprised over its maximum ln E."
    plain = Quantity(**FIELDS, unit="nats")
    assert (plain.shown_unit, plain.shown_help) == ("nats", "How much the load surprised.")

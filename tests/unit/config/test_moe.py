"""The moe section."""

import re
from typing import Any

import pytest

from moe_megatron.config import MoEConfig, RouterConfig
from moe_megatron.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 0}, "moe.num_experts must be at least 1, not 0."),
        ({"top_k": 9}, "moe.top_k (9) must not exceed moe.num_experts (8)."),
        ({"aux_loss_coef": -1}, "moe.aux_loss_coef must be at least 0, not -1.0."),
        ({"capacity_factor": 0}, "moe.capacity_factor must be greater than 0, not 0.0."),
        ({"input_jitter": 1.5}, "moe.input_jitter must be 0 or more and less than 1, not 1.5."),
        (
            {"load_balancing": "aux_los"},
            "or 'none', not 'aux_los'. Did you mean 'aux_loss'?",
        ),
        (
            {"load_balancing": "sinkhorn"},
            "moe.load_balancing 'sinkhorn' works without an auxiliary loss; set "
            "moe.aux_loss_coef to 0, not 0.01.",
        ),
        (
            {"load_balancing": "sinkhorn", "aux_loss_coef": 0, "capacity_factor": 1.0},
            "moe.capacity_factor (1.0) does not work with moe.load_balancing 'sinkhorn'",
        ),
        (
            {"load_balancing": "quantile_balancing", "aux_loss_coef": 0, "expert_bias": True},
            "moe.expert_bias does not work with moe.load_balancing 'quantile_balancing'",
        ),
        ({"pad_to_capacity": True}, "moe.pad_to_capacity needs a moe.capacity_factor"),
        (
            {"pad_to_capacity": True, "capacity_factor": 4.5},
            "moe.top_k (2) x the factor must not exceed moe.num_experts (8); set the factor to 4 ",
        ),
        ({"layer_frequency": 0}, "moe.layer_frequency must be at least 1, not 0."),
        ({"layer_frequency": [0, 0]}, "at least one 1, not [0, 0]."),
        ({"layer_frequency": [1, 2]}, "at least one 1, not [1, 2]."),
        ({"router": 3}, "moe.router needs the name of a router, or a mapping of its name and"),
        ({"router": {"name": 3}}, "moe.router.name needs text, not 3."),
        ({"router": {"tau": [1]}}, "moe.router.tau needs "),
        (
            {"router": {"a b": 1}},
            "moe.router has an option 'a b' (text), which is not a valid name",
        ),
    ],
)
def test_moe_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        MoEConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 1, "load_balancing": "sinkhorn", "aux_loss_coef": 0.0},
        {"router": "sparse_mixer"},
        {"router": {"score_function": "sigmoid"}},
        {"router": {"name": "not_registered_yet", "options": "are checked by routing.resolve"}},
        {"capacity_factor": 1.25, "pad_to_capacity": True},
        {"num_experts": None, "top_k": 100},
    ],
)
def test_moe_allowed_combination_is_accepted(fields: dict[str, Any]) -> None:
    MoEConfig(**fields)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("sparse_mixer", {"name": "sparse_mixer"}),
        ({"scaling": 2.5}, {"name": "top_k", "scaling": 2.5}),
        (RouterConfig(name="x", options={"a": None}), {"name": "x", "a": None}),
    ],
)
def test_router_is_a_name_a_mapping_or_a_router(value: Any, plain: dict[str, Any]) -> None:
    assert MoEConfig(router=value).router.to_plain() == plain


@pytest.mark.parametrize(
    ("frequency", "numbers"),
    [(1, (1, 2, 3, 4)), (2, (1, 3)), (9, (1,)), ((0, 1, 0, 1), (2, 4))],
)
def test_layer_numbers_follow_the_frequency(
    frequency: int | tuple[int, ...], numbers: tuple[int, ...]
) -> None:
    assert MoEConfig(layer_frequency=frequency).layer_numbers(4) == numbers


def test_layer_numbers_dense_model_has_none() -> None:
    assert MoEConfig(num_experts=None).layer_numbers(4) == ()

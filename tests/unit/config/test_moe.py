"""The moe section."""

import re
from typing import Any

import pytest

from moe_megatron.config import MoEConfig
from moe_megatron.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 0}, "moe.num_experts must be at least 1, not 0."),
        ({"top_k": 9}, "moe.top_k (9) must not exceed moe.num_experts (8)."),
        ({"top_k": 1}, "moe.top_k 1 needs moe.pre_softmax true"),
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
            {"router_algorithm": "sparse_mixer", "capacity_factor": 1.25, "pre_softmax": True},
            "moe.router_algorithm 'sparse_mixer' does not work with moe.pre_softmax (True), "
            "moe.capacity_factor (1.25); leave such fields at their defaults, or use 'top_k'.",
        ),
        ({"pad_to_capacity": True}, "moe.pad_to_capacity needs a moe.capacity_factor"),
        (
            {"expert_bias": True},
            "moe.expert_bias works with independent scores only; set moe.router_score_function "
            "to 'sigmoid' or 'sqrtsoftplus', not 'softmax'.",
        ),
        ({"layer_frequency": 0}, "moe.layer_frequency must be at least 1, not 0."),
        ({"layer_frequency": [0, 0]}, "at least one 1, not [0, 0]."),
        ({"layer_frequency": [1, 2]}, "at least one 1, not [1, 2]."),
        (
            {"num_groups": 4},
            "moe.num_groups (4) and moe.group_top_k (None) belong together; set both, or neither.",
        ),
        (
            {"num_groups": 3, "group_top_k": 1},
            "moe.num_groups (3) must divide moe.num_experts (8); try 1, 2, 4 or 8.",
        ),
        (
            {"num_groups": 2, "group_top_k": 3, "top_k": 4},
            "moe.group_top_k (3) must not exceed moe.num_groups (2)",
        ),
        (
            {"num_groups": 8, "group_top_k": 1, "top_k": 2},
            "its groups must hold top_k experts (they hold 1).",
        ),
    ],
)
def test_moe_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        MoEConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 1, "pre_softmax": True},
        {"top_k": 1, "router_score_function": "sigmoid"},
        {"top_k": 1, "load_balancing": "sinkhorn", "aux_loss_coef": 0.0},
        {"expert_bias": True, "router_score_function": "sigmoid"},
        {"num_groups": 4, "group_top_k": 2},
        {"router_algorithm": "sparse_mixer", "top_k": 1},
        {"capacity_factor": 1.25, "pad_to_capacity": True},
        {"num_experts": None, "top_k": 100},
    ],
)
def test_moe_allowed_combination_is_accepted(fields: dict[str, Any]) -> None:
    MoEConfig(**fields)


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

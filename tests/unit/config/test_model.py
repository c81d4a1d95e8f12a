"""The model section."""

import re
from typing import Any

import pytest

from moe_megatron.config import ModelConfig
from moe_megatron.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 0}, "model.num_layers must be at least 1, not 0."),
        ({"num_layers": True}, "model.num_layers needs a whole number, not true."),
        ({"norm_epsilon": 0}, "model.norm_epsilon must be greater than 0, not 0.0."),
        (
            {"hidden_dropout": 1},
            "model.hidden_dropout must be 0 or more and less than 1, not 1.0.",
        ),
        (
            {"norm": "RMSnorm"},
            "model.norm needs 'RMSNorm' or 'LayerNorm', not 'RMSnorm'. Did you mean 'RMSNorm'?",
        ),
        (
            {"hidden_size": 100, "num_attention_heads": 8},
            "model.hidden_size (100) must be a multiple of model.num_attention_heads (8); "
            "change one, or set model.head_dim.",
        ),
        (
            {"hidden_size": 24, "num_attention_heads": 8},
            "rope rotates pairs of features, so the head width (3) must be even",
        ),
        (
            {"num_query_groups": 3},
            "model.num_query_groups (3) must divide model.num_attention_heads (8); "
            "try 1, 2, 4 or 8.",
        ),
    ],
)
def test_model_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig(**fields)


def test_attention_head_dim_defaults_to_an_even_share() -> None:
    assert ModelConfig(hidden_size=96, num_attention_heads=3).attention_head_dim == 32
    assert ModelConfig(hidden_size=100, num_attention_heads=3, head_dim=32).attention_head_dim == 32


def test_key_value_heads_default_to_query_heads() -> None:
    assert ModelConfig().key_value_heads == 8
    assert ModelConfig(num_query_groups=2).key_value_heads == 2


@pytest.mark.parametrize("hidden_size", [64, 256, 1000, 4096])
def test_dense_ffn_size_swiglu_follows_megatron(hidden_size: int) -> None:
    config = ModelConfig(hidden_size=hidden_size, num_attention_heads=4)
    # The formula of megatron.training.arguments, in its own words.
    assert config.dense_ffn_size == int((4 * hidden_size * 2 / 3) / 64) * 64


def test_dense_ffn_size_narrow_swiglu_is_not_zero() -> None:
    assert ModelConfig(hidden_size=16, num_attention_heads=2).dense_ffn_size == 64


def test_dense_ffn_size_without_gate_is_four_times_hidden() -> None:
    assert ModelConfig(activation="gelu").dense_ffn_size == 1024


def test_dense_ffn_size_given_is_kept() -> None:
    assert ModelConfig(ffn_hidden_size=100).dense_ffn_size == 100

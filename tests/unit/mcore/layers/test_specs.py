"""Megatron's own block spec with our router and norm in place of its, and nothing else changed."""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from moe_megatron.config import RunConfig
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.layers.norm import LocalNorm
from moe_megatron.mcore.layers.specs import adapt_block, layer_spec

pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture
def settings() -> TransformerConfig:
    return TransformerConfig(
        num_layers=3,
        hidden_size=32,
        num_attention_heads=2,
        num_moe_experts=4,
        moe_layer_freq=[1, 0, 1],
        normalization="RMSNorm",
        qk_layernorm=True,
        add_bias_linear=False,
        transformer_impl="local",
        pipeline_dtype=None,
    )


def stock_block(settings: TransformerConfig) -> Any:
    return get_gpt_decoder_block_spec(
        settings, use_transformer_engine=False, normalization=settings.normalization
    )


def found(spec: Any, wanted: Any) -> int:
    """How often a class stands anywhere in a spec."""
    if spec is wanted:
        return 1
    if isinstance(spec, partial):
        return found(spec.func, wanted) + sum(found(v, wanted) for v in spec.keywords.values())
    if isinstance(spec, list | tuple):
        return sum(found(item, wanted) for item in spec)
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return sum(found(getattr(spec, f.name), wanted) for f in dataclasses.fields(spec))
    return 0


def test_every_norm_and_every_router_is_ours(settings: TransformerConfig) -> None:
    stock = stock_block(settings)
    ours = adapt_block(stock, RunConfig())
    num_norms = found(stock, WrappedTorchNorm)
    # Two in each layer, two for queries and keys, one at the end.
    assert num_norms == 3 * 4 + 1
    assert (found(ours, WrappedTorchNorm), found(ours, LocalNorm)) == (0, num_norms)
    assert (found(stock, MoELayer), found(ours, MoELayer)) == (2, 2)
    assert found(ours, MeasuredRouter) == 2


def test_stock_spec_is_left_as_it_was(settings: TransformerConfig) -> None:
    stock = stock_block(settings)
    adapt_block(stock, RunConfig())
    assert found(stock, LocalNorm) == found(stock, MeasuredRouter) == 0


def test_spec_of_a_run_follows_its_configuration(settings: TransformerConfig) -> None:
    block = layer_spec(SimpleNamespace(transformer=settings), config=RunConfig())
    assert len(block.layer_specs) == settings.num_layers
    assert found(block, MeasuredRouter) == 2

"""Layers for multi-token prediction: what they are built from, and their numbers."""

from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.multi_token_prediction import (
    MTPLossLoggingHelper,
    MultiTokenPredictionLayer,
)
from megatron.training import global_vars
from megatron.training.models import gpt

from moe_megatron.analytics.run_memory import run_memory
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.mcore.layers.layer_numbers import number_of
from moe_megatron.mcore.layers.local_attention import LocalAttention
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.layers.prediction import our_prediction_layers
from moe_megatron.mcore.layers.token_ids import show_token_ids
from moe_megatron.mcore.loop.cleanup import forget_globals
from moe_megatron.mcore.recovery.expert_parameters import expert_parameters, routers
from moe_megatron.mcore.state.layered import bare_model
from moe_megatron.routing.hash import route_hash

pytestmark = pytest.mark.usefixtures("world")


def build(**overrides: Any) -> Any:
    """A model of two layers in the decoder and two for prediction."""
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    fields = {"model.num_prediction_layers": 2, **overrides}
    config = apply_overrides(load_config("test_tiny"), fields)
    try:
        with our_prediction_layers(config):
            return bare_model(config)
    finally:
        global_vars.destroy_global_vars()
        destroy_num_microbatches_calculator()


def test_they_are_built_from_our_layers_and_numbered_on() -> None:
    original = gpt.mtp_block_spec
    model = build()
    assert gpt.mtp_block_spec is original
    for layer in model.mtp.layers:
        assert type(layer) is MultiTokenPredictionLayer
        inner = layer.mtp_model_layer
        assert type(inner.self_attention.core_attention) is LocalAttention
        assert type(inner.mlp.router) is MeasuredRouter
        norms = (layer.enorm, layer.hnorm, layer.final_layernorm, inner.input_layernorm)
        assert {type(norm).__name__ for norm in norms} == {"RMSNorm"}
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    assert [number_of(layer) for layer in layers] == [1, 2, 3, 4]
    assert [number_of(layer.router) for layer in layers] == [1, 2, 3, 4]


def test_experts_and_routers_are_found_under_their_own_numbers() -> None:
    model = build()
    assert sorted(routers([model])) == [1, 2, 3, 4]
    found = {(it.layer, it.expert) for it in expert_parameters([model])}
    assert found == {(layer, expert) for layer in (1, 2, 3, 4) for expert in range(4)}


def test_after_a_dense_layer_they_are_dense() -> None:
    model = build(**{"moe.layer_frequency": [1, 0]})
    assert sorted(routers([model])) == [1]
    assert len(model.mtp.layers) == 2


def test_their_weights_are_in_the_estimate_of_memory() -> None:
    config = apply_overrides(load_config("test_tiny"), {"model.num_prediction_layers": 2})
    weights = sum(parameter.numel() for parameter in build().parameters())
    # fp32 weights, moments and master weights.
    assert run_memory(config, precision="fp32", world_size=1).checkpoint == 16 * weights


def test_a_router_of_token_ids_sees_those_that_a_layer_predicts_from() -> None:
    model = build(**{"moe.router": "hash"}).eval()
    tokens = torch.randint(0, 500, (2, 16), generator=torch.Generator().manual_seed(1))
    found: dict[int, torch.Tensor] = {}
    for number, router in routers([model]).items():
        router.register_forward_hook(
            lambda module, given, output, number=number: found.update({number: output[1]})
        )
    show_token_ids(tokens)
    with torch.no_grad():
        model(tokens, torch.arange(16).expand_as(tokens), None, labels=tokens)
    # Layers 3 and 4 predict, from one and two tokens later.
    for layer, ahead in {1: 0, 2: 0, 3: 1, 4: 2}.items():
        later = torch.cat((tokens[:, ahead:], torch.zeros(2, ahead, dtype=torch.int64)), dim=1)
        ids = later.t().reshape(-1)
        expected = route_hash(torch.zeros(32, 4), top_k=2, token_ids=ids).routing_map
        assert torch.equal(found[layer], expected)


def test_losses_of_a_run_are_forgotten_after_it() -> None:
    MTPLossLoggingHelper.tracker["loss_values"] = [1.0, 2.0]
    forget_globals()
    assert MTPLossLoggingHelper.tracker == {}

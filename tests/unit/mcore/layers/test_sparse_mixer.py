"""Megatron's router with SparseMixer's choice: its own losses, counted like any other."""

from collections.abc import Callable

import pytest
import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

from moe_megatron.mcore.layers.router import MeasuredRouter
from moe_megatron.mcore.layers.sparse_mixer import MeasuredSparseMixer
from moe_megatron.mcore.measure.counters import RoutingRow
from moe_megatron.routing import route_sparse_mixer

HIDDEN, EXPERTS, SEQUENCE, BATCH = 16, 6, 10, 3
pytestmark = pytest.mark.usefixtures("world")
Build = Callable[..., tuple[MeasuredSparseMixer, RoutingRow]]


@pytest.fixture
def build(counted: Callable[[MeasuredRouter], RoutingRow]) -> Build:
    """Makes a router and the row it counts into."""

    def make(aux_loss: float = 0.0) -> tuple[MeasuredSparseMixer, RoutingRow]:
        config = TransformerConfig(
            num_layers=1,
            hidden_size=HIDDEN,
            num_attention_heads=2,
            num_moe_experts=EXPERTS,
            moe_router_topk=2,
            moe_router_dtype="fp32",
            moe_aux_loss_coeff=aux_loss,
            add_bias_linear=False,
        )
        router = MeasuredSparseMixer(config, get_default_pg_collection(), jitter=0.1)
        return router, counted(router)

    return make


@pytest.fixture
def x(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SEQUENCE, BATCH, HIDDEN, generator=generator).to(device)


def test_choice_is_that_of_the_sparse_mixer(build: Build, x: torch.Tensor) -> None:
    router, _ = build()
    probs, routing_map = router.eval()(x)
    expected = route_sparse_mixer(router.gating(x).view(-1, EXPERTS), 2, jitter=0.1)
    assert torch.equal(probs, expected.probs)
    assert torch.equal(routing_map, expected.routing_map)


def test_every_choice_of_training_is_counted(build: Build, x: torch.Tensor) -> None:
    router, row = build()
    _, routing_map = router.train()(x)
    assert torch.equal(row.tokens_per_expert, routing_map.sum(dim=0))
    assert int(row.tokens_per_expert.sum()) == 2 * SEQUENCE * BATCH


def test_balancing_loss_reaches_the_router(build: Build, x: torch.Tensor) -> None:
    gradients = []
    for aux_loss in (0.0, 1.0):
        router, _ = build(aux_loss)
        torch.manual_seed(7)
        router.train()(x)[0].sum().backward()
        assert router.weight.grad is not None
        gradients.append(router.weight.grad)
    assert not torch.allclose(*gradients)

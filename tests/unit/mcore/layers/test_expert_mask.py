"""Masked experts get no tokens, whichever router chooses, and everything stays finite."""

from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

from moe_megatron.config import RouterConfig
from moe_megatron.mcore.layers.expert_mask import ExpertMask
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.layers.token_ids import show_token_ids
from moe_megatron.routing import find_router, router_names
from tests.unit.mcore.layers.test_measured_router import EXPERTS, TOP_K, route_of, settings

pytestmark = pytest.mark.usefixtures("world")

MASKED = (0, 4)
ROUTERS: dict[str, tuple[RouterConfig | None, dict[str, Any]]] = {
    "softmax": (None, {}),
    "pre_softmax": (None, {"moe_router_pre_softmax": True}),
    "bias": (
        None,
        {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True},
    ),
    "groups": (None, {"moe_router_num_groups": 2, "moe_router_group_topk": 1}),
    "sparse_mixer": (RouterConfig(name="sparse_mixer"), {}),
    "capacity": (None, {"moe_expert_capacity_factor": 1.0}),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_no_token_goes_to_a_masked_expert(name: str, device: torch.device, counted: Any) -> None:
    router, fields = ROUTERS[name]
    measured = MeasuredRouter(
        settings(**fields), get_default_pg_collection(), route=route_of(fields, router)
    ).train()
    row = counted(measured)
    bias = measured.expert_bias
    if bias is not None:
        bias[list(MASKED)] = 5.0
    measured.mask = ExpertMask(MASKED, EXPERTS, measured.weight.device)
    x = torch.randn(20, 3, 16, generator=torch.Generator().manual_seed(2)).to(device)
    probs, routing_map = measured(x)
    assert not routing_map[:, list(MASKED)].any()
    if name != "capacity":
        assert (routing_map.sum(-1) == TOP_K).all()
        assert int(row.tokens_per_expert.sum()) == 60 * TOP_K
    probs.square().sum().backward()
    assert measured.weight.grad is not None
    assert measured.weight.grad.isfinite().all()
    assert not measured.weight.grad[list(MASKED)].any()
    assert all(bool(total.isfinite()) for total in row.sums)
    assert row.prob_sums[list(MASKED)].abs().sum() == 0
    if bias is not None:
        assert measured.expert_bias is bias, "the bias itself is as before"
        counts = measured.local_tokens_per_expert
        living = [e for e in range(EXPERTS) if e not in MASKED]
        assert (counts[list(MASKED)] == counts[living].mean()).all()


OURS = [
    it for it in router_names() if find_router(it).function.__module__.startswith("moe_megatron.")
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OURS)
def test_no_router_of_the_package_reaches_a_masked_expert(
    name: str, training: bool, device: torch.device, counted: Any
) -> None:
    route = route_of({}, RouterConfig(name=name))
    measured = MeasuredRouter(settings(), get_default_pg_collection(), route=route).train(training)
    row = counted(measured)
    measured.mask = ExpertMask(MASKED, EXPERTS, measured.weight.device)
    x = torch.randn(20, 3, 16, generator=torch.Generator().manual_seed(2)).to(device)
    show_token_ids(torch.arange(60, device=device).view(3, 20))
    probs, routing_map = measured(x)
    assert not routing_map[:, list(MASKED)].any()
    assert probs.isfinite().all()
    assert not probs[:, list(MASKED)].any()
    if route.router.fixed_number:
        assert (routing_map.sum(-1) == TOP_K).all()
    if training:
        assert torch.equal(row.tokens_per_expert, routing_map.sum(0))


@pytest.mark.parametrize(("name", "tensor"), [("loss_free", "bias"), ("quantile", "bias")])
def test_a_masked_expert_counts_as_average_for_a_state(name: str, tensor: str) -> None:
    measured = MeasuredRouter(
        settings(), get_default_pg_collection(), route=route_of({}, RouterConfig(name=name))
    ).train()
    assert measured.state is not None
    measured.mask = ExpertMask(MASKED, EXPERTS, measured.weight.device)
    measured(torch.randn(20, 3, 16, generator=torch.Generator().manual_seed(2)))
    measured.state.renew(measured.state.sums)
    bias = measured.state.values()[tensor]
    living = [e for e in range(EXPERTS) if e not in MASKED]
    assert bias[living].abs().max() > 0
    assert bias[list(MASKED)].min() >= bias[living].min()
    assert bias[list(MASKED)].max() <= bias[living].max()
    if name == "loss_free":
        assert not bias[list(MASKED)].any()

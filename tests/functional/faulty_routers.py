"""Routers with one mistake each, which only the engines, or a second look, can find.

Ranks import this file, and so know them; it is imported in a test, so that they are not among the
routers of other tests.
"""

import os
from typing import Any

import torch
from torch import Tensor

from moe_megatron.routing import RouterState, Routing, register_router


def chosen(logits_TE: Tensor, top_k: int) -> Routing:
    weights_TK, indices_TK = logits_TE.softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


@register_router("faulty_rank")
def of_the_rank(logits_TE: Tensor, *, top_k: int) -> Routing:
    return chosen(logits_TE.roll(int(os.environ.get("RANK", "0")), dims=-1), top_k)


@register_router("faulty_first_pass")
def of_the_first_pass(logits_TE: Tensor, *, top_k: int, training: bool) -> Routing:
    recomputed = training and not torch.is_grad_enabled()
    return chosen(-logits_TE if recomputed else logits_TE, top_k)


@register_router("faulty_loss")
def with_a_sum_for_a_loss(logits_TE: Tensor, *, top_k: int) -> Routing:
    return chosen(logits_TE, top_k).losing(logits_TE.square().sum())


@register_router(
    "faulty_sums",
    state=RouterState(
        first=lambda num_experts: {"bias": torch.zeros(num_experts)},
        sums=lambda num_experts: {"share": torch.zeros(num_experts)},
        updated=lambda state, sums, **_: {"bias": state["bias"] - sums["share"].float()},
    ),
)
def with_means_for_sums(logits_TE: Tensor, *, top_k: int, state: Any) -> Routing:
    routing = chosen(logits_TE + state["bias"].type_as(logits_TE), top_k)
    return routing.observing(share=routing.routing_map.float().mean(dim=0))


@register_router("faulty_rows")
def of_the_row(logits_TE: Tensor, *, top_k: int) -> Routing:
    rows = torch.arange(len(logits_TE), device=logits_TE.device).unsqueeze(-1)
    return chosen(logits_TE + rows % 2 * logits_TE.flip(-1), top_k)


@register_router("faulty_size")
def of_the_number_of_tokens(logits_TE: Tensor, *, top_k: int) -> Routing:
    return chosen(logits_TE * len(logits_TE), top_k)


@register_router(
    "faulty_state",
    state=RouterState(
        first=lambda num_experts: {"seen": torch.zeros(1)},
        sums=lambda num_experts: {"load": torch.zeros(num_experts)},
        updated=lambda state, sums, **_: dict(state),
    ),
)
def that_writes_its_state(logits_TE: Tensor, *, top_k: int, state: Any) -> Routing:
    routing = chosen(logits_TE, top_k)
    state["seen"].add_(len(logits_TE))
    return routing.observing(load=routing.routing_map.sum(dim=0))

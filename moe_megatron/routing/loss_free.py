"""Loss-free balancing: a bias on the scores that choose, moved by a fixed step (DeepSeek-V3)."""

from typing import Annotated

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.state import RouterState, State
from moe_megatron.routing.top_k import check_top_k, route_biased


def _updated(state: State, sums: State, *, update_rate: float, **_: object) -> dict[str, Tensor]:
    """b_e <- b_e + rate * sign(mean load - load_e); loads are counts, and exact."""
    load_E = sums["load"]
    return {"bias": state["bias"] + update_rate * torch.sign(load_E.mean() - load_E).float()}


@register_router(
    "loss_free",
    state=RouterState(
        first=lambda num_experts: {"bias": torch.zeros(num_experts)},
        sums=lambda num_experts: {"load": torch.zeros(num_experts)},
        updated=_updated,
    ),
)
def route_loss_free(
    logits_TE: Tensor,
    *,
    top_k: int,
    state: State,
    padding: Tensor | None,
    update_rate: Annotated[float, Within(least=0)] = 1e-3,
) -> Routing:
    """Choose the largest s + b; weights are s / sum of the chosen s, s the sigmoid.

    This is auxiliary-loss-free load balancing (arXiv:2408.15664) as DeepSeek-V3 has it: b_e rises
    by `update_rate` after a step in which expert e had fewer tokens than the average, and falls
    where it had more. So no auxiliary loss disturbs that of the model. At inference tokens are
    routed as in training, by the last bias.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        state: `bias`, [E].
        padding: bool [T], or None.
        update_rate: By how much a bias moves in a step.

    Raises:
        ConfigError: top_k is not in 1..E.
    """
    check_top_k(top_k, logits_TE.shape[-1])
    routing = route_biased(torch.sigmoid(logits_TE.float()), state["bias"], top_k, logits_TE.dtype)
    map_TE = routing.routing_map
    if padding is not None:
        map_TE = map_TE & ~padding.unsqueeze(-1)
    return routing.observing(load=map_TE.sum(dim=0))

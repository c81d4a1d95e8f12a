"""ReMoE: an expert works where its gate is positive, and a loss keeps most of them at zero."""

from typing import Annotated

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.description import Distribution
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.state import RouterState, State

_EPSILON = 1e-9


def _updated(
    state: State, sums: State, *, top_k: int, growth: float, **_: object
) -> dict[str, Tensor]:
    """Lambda <- lambda * growth if tokens had more than top_k experts on average, else / growth."""
    too_many = torch.sign(sums["active"].sum() - top_k * sums["tokens"]).float()
    return {"strength": state["strength"] * growth**too_many}


def relu_distribution(options: object) -> Distribution:
    """p_e = ReLU(l_e) / sum, or an even share where no gate is open."""

    def positive(logits_TE: Tensor) -> Tensor:
        open_TE = torch.relu(logits_TE.float()) + _EPSILON
        return open_TE / open_TE.sum(-1, keepdim=True)

    return positive


@register_router(
    "relu",
    fixed_number=False,
    loss_of_batch=True,
    distribution=relu_distribution,
    state=RouterState(
        first=lambda num_experts: {"strength": torch.full((1,), 1e-8)},
        sums=lambda num_experts: {"active": torch.zeros(num_experts), "tokens": torch.zeros(1)},
        updated=_updated,
    ),
)
def route_relu(
    logits_TE: Tensor,
    *,
    top_k: int,
    state: State,
    padding: Tensor | None,
    growth: Annotated[float, Within(least=1)] = 1.2,
) -> Routing:
    """g_e = ReLU(l_e), which is weight and choice in one (ReMoE, arXiv:2412.14711).

    The loss lambda * sum_e f_e * mean_t g_te, where f_e is the load of expert e relative to an even
    one, pulls gates to zero, most of all those of busy experts. lambda grows as long as tokens have
    more than top_k experts on average, and shrinks where they have fewer.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token, on average.
        state: `strength`, lambda, [1].
        padding: bool [T], or None.
        growth: Factor of lambda in a step.
    """
    gates_TE = torch.relu(logits_TE)
    routing = Routing.of_map(gates_TE, gates_TE.detach() > 0)
    valid_TE = gates_TE.float() if padding is None else gates_TE[~padding].float()
    active_E, num_tokens = (valid_TE > 0).sum(dim=0), valid_TE.shape[0]
    relative_E = active_E * (valid_TE.shape[1] / (top_k * max(num_tokens, 1)))
    loss = (
        state["strength"].squeeze() * (relative_E * valid_TE.sum(dim=0)).sum() / max(num_tokens, 1)
    )
    tokens = torch.full((1,), num_tokens, device=logits_TE.device)
    return routing.losing(loss).observing(active=active_E, tokens=tokens)

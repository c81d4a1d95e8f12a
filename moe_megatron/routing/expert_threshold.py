"""Expert threshold: a token goes to every expert whose learned cutoff it exceeds."""

from typing import Annotated

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.routing.cutoffs import CUTOFFS, batch_cutoffs, learned_cutoffs, route_above
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.state import State


@register_router("expert_threshold", fixed_number=False, batch_dependent="training", state=CUTOFFS)
def route_expert_threshold(
    logits_TE: Tensor,
    *,
    top_k: int,
    state: State,
    training: bool,
    padding: Tensor | None,
    decay: Annotated[float, Within(least=0, below=1)] = 0.99,
    warmup_steps: Annotated[int, Within(least=0)] = 20,
) -> Routing:
    """Token t goes to expert e where p_te >= c_e (expert threshold routing, arXiv:2603.11535).

    p is the softmax over experts, and the weight; c_e is the moving average of what top_k / E of
    all tokens exceed. The average of experts per token is top_k, and a token's own number follows
    from the token alone. In the first `warmup_steps`, where c is still moving, experts choose among
    the tokens of the batch instead.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token, on average.
        state: See `cutoffs`.
        training: Whether this step may be one of the warm-up.
        padding: bool [T], or None.
        decay: Share of the old cutoffs that is kept in a step.
        warmup_steps: Steps until the cutoffs count.
    """
    log_probs_TE = torch.log_softmax(logits_TE.float(), dim=-1)
    cutoff_E = learned_cutoffs(log_probs_TE, state)
    if training:
        warm = state["steps"] >= warmup_steps
        cutoff_E = torch.where(warm, cutoff_E, batch_cutoffs(log_probs_TE, top_k, padding))
    return route_above(cutoff_E, log_probs_TE, padding, training=training, dtype=logits_TE.dtype)

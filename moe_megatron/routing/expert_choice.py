"""Expert choice: each expert takes the tokens that suit it best, and all take equally many."""

from typing import Annotated

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.routing.cutoffs import CUTOFFS, batch_cutoffs, learned_cutoffs, route_above
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.state import State


@register_router("expert_choice", fixed_number=False, batch_dependent="training", state=CUTOFFS)
def route_expert_choice(
    logits_TE: Tensor,
    *,
    top_k: int,
    state: State,
    training: bool,
    padding: Tensor | None,
    decay: Annotated[float, Within(least=0, below=1)] = 0.99,
) -> Routing:
    """Expert e takes its C = ceil(T * top_k / E) tokens with the largest p_te (arXiv:2202.09368).

    p is the softmax over experts, and the weight. In training an expert compares all tokens of a
    micro-batch, later ones too. In evaluation a token goes to the experts whose p exceeds the
    cutoff learned in training, below which the other tokens were; so no token sees a later one.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token, on average.
        state: See `cutoffs`.
        training: Whether experts choose among the tokens that are here.
        padding: bool [T], or None.
        decay: Share of the old cutoffs that is kept in a step.
    """
    log_probs_TE = torch.log_softmax(logits_TE.float(), dim=-1)
    if training:
        cutoff_E = batch_cutoffs(log_probs_TE, top_k, padding)
    else:
        cutoff_E = learned_cutoffs(log_probs_TE, state)
    return route_above(cutoff_E, log_probs_TE, padding, training=training, dtype=logits_TE.dtype)

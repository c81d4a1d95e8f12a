"""Top-p: as many experts as it takes to be sure enough (dynamic routing)."""

from typing import Annotated

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router


@register_router("top_p", fixed_number=False)
def route_top_p(
    logits_TE: Tensor,
    *,
    top_k: int,
    padding: Tensor | None,
    threshold: Annotated[float, Within(above=0, most=1)] = 0.5,
    entropy_coef: Annotated[float, Within(least=0)] = 1e-4,
) -> Routing:
    """The smallest set of experts whose probabilities add up to the threshold (arXiv:2403.07652).

    Weights are the probabilities themselves. A loss of `entropy_coef` times the entropy of the
    router keeps it from calling ever more experts by knowing ever less.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token that capacity is made for; the choice does not look at it.
        padding: bool [T], or None.
        threshold: Sum of probabilities that is enough.
        entropy_coef: Weight of the loss.
    """
    del top_k
    probs_TE = torch.softmax(logits_TE, dim=-1, dtype=torch.float32)
    sorted_TE = probs_TE.detach().sort(dim=-1, descending=True)
    before_TE = sorted_TE.values.cumsum(-1) - sorted_TE.values
    chosen_TE = torch.zeros_like(before_TE, dtype=torch.bool)
    chosen_TE = chosen_TE.scatter(1, sorted_TE.indices, before_TE < threshold)
    routing = Routing.of_map(probs_TE.type_as(logits_TE), chosen_TE)
    entropy_T = torch.special.entr(probs_TE if padding is None else probs_TE[~padding]).sum(-1)
    return routing.losing(entropy_coef * entropy_T.sum() / max(len(entropy_T), 1))

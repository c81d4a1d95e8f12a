"""A softmax over all experts, corrected by a bias for the choice, and weights that sum to 1.

ERNIE 4.5 balances its experts by such a bias, as DeepSeek-V3 does with a sigmoid; Megatron's own
router has no bias for a softmax.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import check_top_k


@dataclass(frozen=True, kw_only=True, slots=True)
class BiasedSoftmaxOptions:
    """How small the sum may be that weights are divided by.

    Raises:
        ConfigError: If a value is out of range.
    """

    SECTION: ClassVar[str] = "moe.router"

    smallest_sum: Annotated[float, Within(above=0)] = setting(1e-12)
    """The sum of the chosen probabilities counts as at least this, where the bias chooses experts
    whose probabilities vanish."""

    def __post_init__(self) -> None:
        conform(self)


@register_router("biased_softmax", options=BiasedSoftmaxOptions)
def route_biased_softmax(
    logits_TE: Tensor,
    *,
    top_k: int,
    smallest_sum: float = 1e-12,
    expert_bias: Tensor | None,
) -> Routing:
    """Choose the experts with the largest p + bias; their weights are p / sum of the chosen p.

    As published, one expert has the weight 1, and its gate learns from balancing alone.

    Args:
        logits_TE: Output of the gate; p is its softmax.
        top_k: Experts for each token.
        smallest_sum: See `BiasedSoftmaxOptions`.
        expert_bias: [E], or None.

    Raises:
        ConfigError: top_k is not in 1..E.
    """
    num_experts = logits_TE.shape[-1]
    check_top_k(top_k, num_experts)
    scores_TE = torch.softmax(logits_TE, dim=-1, dtype=torch.float32)
    choice_TE = scores_TE if expert_bias is None else scores_TE + expert_bias.float()
    indices_TK = torch.topk(choice_TE, top_k, dim=-1).indices
    weights_TK = scores_TE.gather(-1, indices_TK)
    weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True).clamp(min=smallest_sum)
    return Routing.of_indices(indices_TK, weights_TK.type_as(logits_TE), num_experts)

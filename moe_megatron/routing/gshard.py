"""GShard's top-2: the best expert always, and the second one by chance or above a threshold."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from moe_megatron.config import MoEConfig, Within
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router


@dataclass(frozen=True, kw_only=True, slots=True)
class GShardOptions:
    """When the second expert is used.

    Raises:
        ConfigError: The threshold is no probability.
    """

    SECTION: ClassVar[str] = "moe.router"

    random_second: bool = setting(True)
    """Draw the second expert in training."""

    second_expert_threshold: Annotated[float, Within(least=0, most=1)] = setting(0.2)
    """Probability from which on the second expert is used for sure."""

    def __post_init__(self) -> None:
        conform(self)

    def check(self, moe: MoEConfig) -> None:
        """Check that there is a second expert, and no third one.

        Raises:
            ConfigError: There is none, or there are more.
        """
        _check(moe.top_k, moe.num_experts or 0)


def _check(top_k: int, num_experts: int) -> None:
    if top_k != 2 or num_experts < 2:
        raise ConfigError(
            f"the router 'gshard' sends a token to a first and perhaps a second expert, so it "
            f"needs moe.top_k 2 and at least 2 experts, not {top_k} and {num_experts}."
        )


@register_router("gshard", options=GShardOptions, fixed_number=False, random=True)
def route_gshard(
    logits_TE: Tensor,
    *,
    top_k: int,
    training: bool,
    random_second: bool = True,
    second_expert_threshold: float = 0.2,
) -> Routing:
    """Two experts with the weights p1 / (p1 + p2) and p2 / (p1 + p2) (arXiv:2006.16668).

    In training the second expert is used with the probability p2 / threshold, at most 1, which for
    a threshold of 1/2 is GShard's 2 p2. In evaluation, and without `random_second`, it is used
    where p2 exceeds the threshold.

    Args:
        logits_TE: Output of the gate; p is its softmax.
        top_k: 2.
        training: Whether the second expert may be drawn.
        random_second: See `GShardOptions`, as for the next.
        second_expert_threshold: Probability from which on the second expert is used for sure.

    Raises:
        ConfigError: top_k is not 2, or there is one expert.
    """
    num_experts = logits_TE.shape[-1]
    _check(top_k, num_experts)
    best_T2 = torch.softmax(logits_TE, dim=-1, dtype=torch.float32).topk(2, dim=-1)
    weights_T2 = best_T2.values / best_T2.values.sum(-1, keepdim=True)
    second_T = best_T2.values[:, 1].detach()
    limit = second_expert_threshold
    drawn = torch.rand_like(second_T) if training and random_second else 1.0
    assigned_T2 = torch.stack((torch.ones_like(second_T).bool(), second_T > limit * drawn), dim=-1)
    return Routing(
        indices=best_T2.indices,
        weights=(weights_T2 * assigned_T2).type_as(logits_TE),
        assigned=assigned_T2,
        kept=assigned_T2,
        num_experts=num_experts,
    )

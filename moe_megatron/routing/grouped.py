"""Grouped routing: equally many experts out of every group, so that devices share the work."""

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
from moe_megatron.routing.top_k import divided_by_sum


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedOptions:
    """Into how many groups experts are divided.

    Raises:
        ConfigError: There is none.
    """

    SECTION: ClassVar[str] = "moe.router"

    groups: Annotated[int, Within(least=1)] = setting(2)
    """M, the number of groups of experts that lie side by side."""

    def __post_init__(self) -> None:
        conform(self)

    def check(self, moe: MoEConfig) -> None:
        """Check that the groups divide the experts, and those of a token.

        Raises:
            ConfigError: They do not.
        """
        _check(self.groups, moe.num_experts or 0, moe.top_k)


def _check(groups: int, num_experts: int, top_k: int) -> None:
    if num_experts % groups or top_k % groups:
        raise ConfigError(
            f"moe.router.groups ({groups}) must divide moe.num_experts ({num_experts}) and "
            f"moe.top_k ({top_k}), so that each group gives equally many experts."
        )


@register_router("grouped", options=GroupedOptions)
def route_grouped(logits_TE: Tensor, *, top_k: int, groups: int = 2) -> Routing:
    """Choose top_k / M experts from each of M groups (Pangu Pro MoGE, arXiv:2505.21411).

    Weights are the softmax over all experts, divided by the sum of the chosen ones if top_k > 1.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        groups: See `GroupedOptions`.

    Raises:
        ConfigError: The groups divide neither experts nor top_k evenly.
    """
    num_tokens, num_experts = logits_TE.shape
    _check(groups, num_experts, top_k)
    probs_TE = torch.softmax(logits_TE, dim=-1, dtype=torch.float32)
    best_TMK = probs_TE.view(num_tokens, groups, -1).topk(top_k // groups, dim=-1)
    firsts_M1 = torch.arange(groups, device=logits_TE.device).unsqueeze(-1) * (
        num_experts // groups
    )
    indices_TK = (best_TMK.indices + firsts_M1).flatten(1)
    weights_TK = divided_by_sum(best_TMK.values.flatten(1))
    best_first = weights_TK.detach().argsort(-1, descending=True)
    return Routing.of_indices(
        indices_TK.gather(1, best_first),
        weights_TK.gather(1, best_first).type_as(logits_TE),
        num_experts,
    )

"""Two levels: a gate chooses groups of experts, and a gate in each group chooses experts."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor
from torch.nn import functional

from moe_megatron.config import MoEConfig, Within, checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.gate import Gate, Parameter
from moe_megatron.routing.registry import register_router


@dataclass(frozen=True, kw_only=True, slots=True)
class HierarchicalOptions:
    """Into how many groups experts are divided, and how many of them a token visits.

    Raises:
        ConfigError: A number is below 1.
    """

    SECTION: ClassVar[str] = "moe.router"

    groups: Annotated[int, Within(least=1)] = setting(2)
    """Number of groups of experts that lie side by side."""

    groups_per_token: Annotated[int, Within(least=1)] = setting(1)
    """Groups that a token visits."""

    def __post_init__(self) -> None:
        conform(self)

    def check(self, moe: MoEConfig) -> None:
        """Check that groups and experts of a token divide.

        Raises:
            ConfigError: They do not.
        """
        _check(self.groups, self.groups_per_token, moe.num_experts or 0, moe.top_k)


def _check(groups: int, groups_per_token: int, num_experts: int, top_k: int) -> None:
    size, rest = divmod(num_experts, groups)
    if rest:
        raise ConfigError(
            f"moe.router.groups ({groups}) must divide moe.num_experts ({num_experts}); try "
            f"{checks.join_words(checks.divisors(num_experts))}."
        )
    share, rest = divmod(top_k, groups_per_token)
    if rest or groups_per_token > groups or share > size:
        raise ConfigError(
            f"moe.router.groups_per_token ({groups_per_token}) must be at most moe.router.groups "
            f"({groups}) and divide moe.top_k ({top_k}) into at most the {size} experts of a group."
        )


def _joint(hidden_TH: Tensor, *, weight: Tensor, group_weight: Tensor, groups: int) -> Tensor:
    """Log p(group) + log p(expert | group), the logits of the joint distribution, [T, E]."""
    log_group_TG = functional.linear(hidden_TH, group_weight).log_softmax(-1)
    logits_TE = functional.linear(hidden_TH, weight)
    within_TGM = logits_TE.view(len(hidden_TH), groups, -1).log_softmax(-1)
    return (log_group_TG.unsqueeze(-1) + within_TGM).flatten(1)


def _tensors(num_experts: int, hidden_size: int, *, groups: int) -> dict[str, Parameter]:
    return {
        "weight": Parameter((num_experts, hidden_size)),
        "group_weight": Parameter((groups, hidden_size)),
    }


@register_router("hierarchical", options=HierarchicalOptions, gate=Gate(_joint, _tensors))
def route_hierarchical(
    logits_TE: Tensor, *, top_k: int, groups: int = 2, groups_per_token: int = 1
) -> Routing:
    """Choose groups, then top_k / groups_per_token experts in each (arXiv:1701.06538, appendix B).

    Weights are p(group) p(expert | group), divided by the sum of the chosen ones' p(expert | group)
    in their group, so that those of a group sum to its p(group).

    Args:
        logits_TE: Logarithms of the joint probabilities.
        top_k: Experts for each token.
        groups: See `HierarchicalOptions`, as for the next.
        groups_per_token: Groups that a token visits.

    Raises:
        ConfigError: Groups and experts of a token do not divide.
    """
    _check(groups, groups_per_token, logits_TE.shape[-1], top_k)
    share = top_k // groups_per_token
    joint_TGM = logits_TE.float().softmax(-1).view(len(logits_TE), groups, -1)
    group_TG = joint_TGM.sum(-1)
    weight_TC, group_TC = group_TG.topk(groups_per_token)
    chosen_TCM = joint_TGM.gather(1, group_TC.unsqueeze(-1).expand(-1, -1, joint_TGM.shape[-1]))
    best_TCK, place_TCK = chosen_TCM.topk(share)
    weight_TCK = weight_TC.unsqueeze(-1) * best_TCK / best_TCK.sum(-1, keepdim=True)
    expert_TCK = group_TC.unsqueeze(-1) * joint_TGM.shape[-1] + place_TCK
    weights_TK = weight_TCK.flatten(1).type_as(logits_TE)
    return Routing.of_indices(expert_TCK.flatten(1), weights_TK, logits_TE.shape[-1])

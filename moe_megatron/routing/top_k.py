"""Top-k routing: from the logits of the gate to the chosen experts and their combine weights.

Formulas and precision are those of Megatron-Core, so that a model routes identically in both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from moe_megatron.config import MoEConfig, Within, checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.description import Distribution, softmax
from moe_megatron.routing.registry import register_router

ScoreFunction = Literal["softmax", "sigmoid", "sqrtsoftplus"]

# Avoids a division by zero if all scores of a token are zero; as in Megatron.
_EPSILON = 1e-20

# Score functions that score each expert independently; with softmax, experts compete.
_INDEPENDENT: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda logits_TE: torch.nn.functional.softplus(logits_TE).sqrt(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKOptions:
    """How the best experts are chosen and weighted.

    Raises:
        ConfigError: If a value is out of range.
    """

    SECTION: ClassVar[str] = "moe.router"

    score_function: ScoreFunction = setting("softmax")
    """Turns logits into scores: experts compete (softmax), or each is scored independently
    (sigmoid, DeepSeek-V3, arXiv:2412.19437; sqrtsoftplus)."""

    pre_softmax: bool = setting(False)
    """Take the softmax over all experts before the choice, instead of over the chosen ones after
    it. The weights of a token then sum to less than 1. Needed with top_k 1."""

    expert_groups: Annotated[int | None, Within(least=1)] = setting(None)
    """Number of equal groups of experts, for group-limited routing (DeepSeek-V2,
    arXiv:2405.04434); null: no groups."""

    group_top_k: Annotated[int | None, Within(least=1)] = setting(None)
    """Number of groups that a token may choose from; set together with expert_groups."""

    scaling: Annotated[float | None, Within(above=0)] = setting(None)
    """Multiplies the combine weights of the chosen experts; null: no scaling."""

    def __post_init__(self) -> None:
        conform(self)

    def check(self, moe: MoEConfig) -> None:
        """Check the options against the other fields of `moe`.

        Raises:
            ConfigError: Two fields contradict each other.
        """
        softmax_of_one = self.score_function == "softmax" and not self.pre_softmax
        if moe.top_k == 1 and softmax_of_one and moe.load_balancing != "sinkhorn":
            raise ConfigError(
                "moe.top_k 1 needs moe.router.pre_softmax true: a softmax over the one chosen "
                "expert is always 1 and would give the router no gradient."
            )
        if moe.expert_bias and self.score_function == "softmax":
            raise ConfigError(
                "moe.expert_bias needs a score function that scores experts independently; set "
                "moe.router.score_function to 'sigmoid' or 'sqrtsoftplus', not 'softmax'."
            )
        self._check_expert_groups(moe.num_experts or 0, moe.top_k)
        self._check_balancing(moe.load_balancing)

    def _check_balancing(self, method: str) -> None:
        """Megatron's methods without a loss choose by themselves, and would ignore options."""
        ignored = {
            "sinkhorn": ("score_function", "expert_groups", "scaling"),
            "quantile_balancing": ("expert_groups",),
        }
        for name in ignored.get(method, ()):
            value, default = getattr(self, name), getattr(TopKOptions(), name)
            if value != default:
                raise ConfigError(
                    f"moe.router.{name} ({value}) does not work with moe.load_balancing "
                    f"'{method}', which chooses without it; leave it out, or balance with a loss."
                )

    def _check_expert_groups(self, num_experts: int, top_k: int) -> None:
        expert_groups, chosen = self.expert_groups, self.group_top_k
        if expert_groups is None and chosen is None:
            return
        if expert_groups is None or chosen is None:
            raise ConfigError(
                f"moe.router.expert_groups ({expert_groups}) and moe.router.group_top_k "
                f"({chosen}) belong together; set both, or neither."
            )
        if num_experts % expert_groups:
            raise ConfigError(
                f"moe.router.expert_groups ({expert_groups}) must divide moe.num_experts "
                f"({num_experts}); try {checks.join_words(checks.divisors(num_experts))}."
            )
        reachable = chosen * (num_experts // expert_groups)
        if not chosen <= min(expert_groups, top_k) or reachable < top_k:
            raise ConfigError(
                f"moe.router.group_top_k ({chosen}) must not exceed moe.router.expert_groups "
                f"({expert_groups}) or moe.top_k ({top_k}), and its groups must hold top_k experts "
                f"(they hold {reachable})."
            )


def top_k_distribution(options: TopKOptions) -> Distribution:
    """p_e = score_e / sum_i score_i, the scores of all experts divided by their sum."""
    if options.score_function == "softmax":
        return softmax
    score = _independent(options.score_function)

    def normalized(logits_TE: Tensor) -> Tensor:
        scores_TE = score(logits_TE.float())
        return scores_TE / (scores_TE.sum(dim=-1, keepdim=True) + _EPSILON)

    return normalized


@register_router("top_k", options=TopKOptions, distribution=top_k_distribution)
def route_top_k(
    logits_TE: Tensor,
    *,
    top_k: int,
    score_function: str = "softmax",
    pre_softmax: bool = False,
    expert_groups: int | None = None,
    group_top_k: int | None = None,
    scaling: float | None = None,
    expert_bias: Tensor | None = None,
) -> Routing:
    """Choose the experts with the best scores (Shazeer et al., arXiv:1701.06538).

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        score_function: "softmax", "sigmoid" or "sqrtsoftplus". With the latter two the scores of
            the chosen experts are divided by their sum, unless top_k is 1.
        pre_softmax: See `TopKOptions`, also for the next three.
        expert_groups: A token's groups are those with the largest sums of their best
            top_k / group_top_k scores.
        group_top_k: Groups for each token.
        scaling: Multiplies the combine weights.
        expert_bias: [E], added to the scores for the choice but not for the weights; not used with
            softmax.

    Raises:
        ConfigError: The score function is unknown, or top_k is not in 1..E.
    """
    num_experts = logits_TE.shape[-1]
    check_top_k(top_k, num_experts)
    choice_TE, scores_TE = _scores(logits_TE, score_function, pre_softmax, expert_bias)
    if expert_groups is not None and group_top_k is not None:
        best = top_k // group_top_k
        choice_TE = _only_best_groups(choice_TE, expert_groups, group_top_k, best)
    indices_TK = torch.topk(choice_TE, top_k, dim=-1).indices
    weights_TK = scores_TE.gather(-1, indices_TK)
    if score_function != "softmax":
        weights_TK = divided_by_sum(weights_TK, _EPSILON)
    elif not pre_softmax:
        weights_TK = torch.softmax(weights_TK, dim=-1, dtype=torch.float32)
    if scaling is not None:
        weights_TK = weights_TK * scaling
    return Routing.of_indices(indices_TK, weights_TK.type_as(logits_TE), num_experts)


def route_biased(scores_TE: Tensor, bias_E: Tensor, top_k: int, dtype: torch.dtype) -> Routing:
    """Choose the largest score + bias; weights are `divided_by_sum` of the chosen scores.

    Args:
        scores_TE: Positive.
        bias_E: Added for the choice alone.
        top_k: Experts for each token.
        dtype: Of the weights.
    """
    indices_TK = torch.topk(scores_TE + bias_E, top_k, dim=-1).indices
    weights_TK = scores_TE.gather(-1, indices_TK)
    weights_TK = divided_by_sum(weights_TK, _EPSILON)
    return Routing.of_indices(indices_TK, weights_TK.to(dtype), scores_TE.shape[-1])


def divided_by_sum(scores_TK: Tensor, epsilon: float = 0.0) -> Tensor:
    """w_k = s_k / (sum_j s_j + epsilon); with one expert w = s.

    s / s is 1 whatever the score, so that the gate would have no gradient from the loss.

    Args:
        scores_TK: Of the chosen experts, positive.
        epsilon: Against a sum of 0.
    """
    if scores_TK.shape[-1] == 1:
        return scores_TK
    return scores_TK / (scores_TK.sum(-1, keepdim=True) + epsilon)


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raise `ConfigError` unless 1 <= top_k <= num_experts."""
    if not 1 <= top_k <= num_experts:
        raise ConfigError(
            f"top_k ({top_k}) must be at least 1 and at most the number of experts ({num_experts})."
        )


def _scores(
    logits_TE: Tensor, score_function: str, pre_softmax: bool, expert_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scores that decide the choice, and those that give the weights, both [T, E]."""
    if score_function == "softmax":
        scores_TE = torch.softmax(logits_TE, -1, dtype=torch.float32) if pre_softmax else logits_TE
        return scores_TE, scores_TE
    scores_TE = _independent(score_function)(logits_TE.float())
    return (scores_TE if expert_bias is None else scores_TE + expert_bias.float()), scores_TE


def _independent(score_function: str) -> Callable[[Tensor], Tensor]:
    if score_function not in _INDEPENDENT:
        raise ConfigError(
            f"the router's score function must be one of softmax, {', '.join(_INDEPENDENT)}, "
            f"not '{score_function}'."
        )
    return _INDEPENDENT[score_function]


def _only_best_groups(scores_TE: Tensor, expert_groups: int, group_top_k: int, best: int) -> Tensor:
    """The scores, with minus infinity for experts outside the token's `group_top_k` best groups.

    The score of a group is the sum of its `best` largest scores.
    """
    grouped_TGE = scores_TE.view(len(scores_TE), expert_groups, -1)
    group_scores_TG = grouped_TGE.topk(best, dim=-1).values.sum(dim=-1)
    chosen_TG = group_scores_TG.topk(group_top_k, dim=-1).indices
    excluded_TG = torch.ones_like(group_scores_TG, dtype=torch.bool).scatter(-1, chosen_TG, False)
    return grouped_TGE.masked_fill(excluded_TG.unsqueeze(-1), float("-inf")).flatten(-2)

"""Top-k routing: from the logits of the gate to the chosen experts and their combine weights.

The formulas are Megatron-Core's, precision included, so that a model routes alike here and there.
Which score function and which k a model uses is its configuration's business.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_megatron.errors import ConfigError

# Keeps the normalization of scores that are all zero from dividing by zero; as in Megatron.
_TINY = 1e-20

# Scores of each expert on its own: unlike softmax, they do not compete.
_INDEPENDENT: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda logits: torch.nn.functional.softplus(logits).sqrt(),
}
SCORE_FUNCTIONS = ("softmax", *_INDEPENDENT)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Routing:
    """Where the tokens go. Sparse as stored, dense on request."""

    indices: Tensor
    """int64 [tokens, top_k]: the experts of each token, best first."""

    weights: Tensor
    """[tokens, top_k]: combine weights, in the dtype of the logits; 0 where dropped."""

    kept: Tensor
    """bool [tokens, top_k]: False where an expert was full and dropped the token."""

    num_experts: int

    @property
    def probs(self) -> Tensor:
        """Combine weights, 0 for experts that do not get the token, [tokens, experts]."""
        dense = self.weights.new_zeros(self.indices.shape[0], self.num_experts)
        return dense.scatter(1, self.indices, self.weights)

    @property
    def routing_map(self) -> Tensor:
        """True where the expert gets the token, bool [tokens, experts]."""
        dense = self.kept.new_zeros(self.indices.shape[0], self.num_experts)
        return dense.scatter(1, self.indices, self.kept)

    @property
    def tokens_per_expert(self) -> Tensor:
        """Tokens that reach each expert, int64 [experts]."""
        return torch.bincount(self.indices[self.kept], minlength=self.num_experts)


def route_top_k(
    logits: Tensor,
    top_k: int,
    *,
    score_function: str = "softmax",
    pre_softmax: bool = False,
    expert_bias: Tensor | None = None,
    num_groups: int | None = None,
    group_top_k: int | None = None,
    scaling: float | None = None,
) -> Routing:
    """Choose the experts of each token (Shazeer et al., arXiv:1701.06538).

    Args:
        logits: [tokens, experts] gate output.
        top_k: Experts for each token.
        score_function: "softmax"; or "sigmoid" (DeepSeek-V3, arXiv:2412.19437) or "sqrtsoftplus",
            whose chosen scores are divided by their sum unless top_k is 1.
        pre_softmax: With softmax: over all experts before the choice, so that the weights of a
            token sum to less than 1, and not over the chosen ones after it.
        expert_bias: [experts], added to independent scores for the choice but not for the weights
            (arXiv:2408.15664).
        num_groups: Equal groups that the experts form; set together with `group_top_k`.
        group_top_k: Groups that a token may choose from: those with the largest sum of their best
            top_k / group_top_k scores (DeepSeek-V2, arXiv:2405.04434).
        scaling: Multiplies the combine weights.

    Raises:
        ConfigError: The score function is unknown, or top_k is not in 1..experts.
    """
    num_experts = logits.shape[-1]
    check_top_k(top_k, num_experts)
    choice, scores = _scores(logits, score_function, pre_softmax, expert_bias)
    if num_groups is not None and group_top_k is not None:
        choice = _only_best_groups(choice, num_groups, group_top_k, top_k // group_top_k)
    indices = torch.topk(choice, top_k, dim=-1).indices
    weights = scores.gather(-1, indices)
    if score_function != "softmax":
        weights = weights / (weights.sum(-1, keepdim=True) + _TINY) if top_k > 1 else weights
    elif not pre_softmax:
        weights = torch.softmax(weights, dim=-1, dtype=torch.float32)
    if scaling is not None:
        weights = weights * scaling
    return Routing(
        indices=indices,
        weights=weights.type_as(logits),
        kept=torch.ones_like(indices, dtype=torch.bool),
        num_experts=num_experts,
    )


def router_distribution(logits: Tensor, score_function: str = "softmax") -> Tensor:
    """The router's distribution over all experts: what the losses and the entropy look at.

    Args:
        logits: [tokens, experts] gate output.
        score_function: As in `route_top_k`; independent scores are divided by their sum.

    Returns:
        float32 [tokens, experts], rows summing to 1.

    Raises:
        ConfigError: The score function is unknown.
    """
    if score_function == "softmax":
        return torch.softmax(logits, dim=-1, dtype=torch.float32)
    scores = _independent(score_function)(logits.float())
    return scores / (scores.sum(dim=-1, keepdim=True) + _TINY)


def balancing_map(distribution: Tensor, top_k: int) -> Tensor:
    """The choice that the load balancing loss counts: without bias, groups or capacity.

    Args:
        distribution: [tokens, experts] of `router_distribution`.
        top_k: Experts for each token.

    Returns:
        bool [tokens, experts].
    """
    chosen = torch.topk(distribution, top_k, dim=-1).indices
    return torch.zeros_like(distribution, dtype=torch.bool).scatter(1, chosen, True)


def check_top_k(top_k: int, num_experts: int) -> None:
    """Raise `ConfigError` unless a token can go to `top_k` of so many experts."""
    if not 1 <= top_k <= num_experts:
        raise ConfigError(
            f"top_k ({top_k}) must be at least 1 and at most the number of experts ({num_experts})."
        )


def _scores(
    logits: Tensor, score_function: str, pre_softmax: bool, expert_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the choice is made by, and what the weights are made of, both [tokens, experts]."""
    if score_function == "softmax":
        scores = torch.softmax(logits, -1, dtype=torch.float32) if pre_softmax else logits
        return scores, scores
    scores = _independent(score_function)(logits.float())
    return (scores if expert_bias is None else scores + expert_bias.float()), scores


def _independent(score_function: str) -> Callable[[Tensor], Tensor]:
    if score_function not in _INDEPENDENT:
        raise ConfigError(
            f"the router's score function must be one of {', '.join(SCORE_FUNCTIONS)}, "
            f"not '{score_function}'."
        )
    return _INDEPENDENT[score_function]


def _only_best_groups(scores: Tensor, num_groups: int, group_top_k: int, best: int) -> Tensor:
    """The scores, with minus infinity for experts outside the token's best groups."""
    grouped = scores.view(len(scores), num_groups, -1)
    group_scores = grouped.topk(best, dim=-1).values.sum(dim=-1)
    chosen = group_scores.topk(group_top_k, dim=-1).indices
    closed = torch.ones_like(group_scores, dtype=torch.bool).scatter(-1, chosen, False)
    return grouped.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(-2)

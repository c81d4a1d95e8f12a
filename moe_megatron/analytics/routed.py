"""`Routed`: the `RoutedTokens` of a hooked router, so that the quantities of a run can be measured.

It differs from that of training runs in that it needs no torch: the tensors' methods are enough.
T is the number of tokens, without padding, E of experts, K of experts that a token visits.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Routed:
    """What a router did with T tokens, without gradients; see `RoutedTokens` for the fields."""

    top_k: int
    logits_TE: "Tensor"
    scores_TE: "Tensor"
    probs_TE: "Tensor"
    routing_map_TE: "Tensor"

    @classmethod
    def of_indices(
        cls, logits_TE: "Tensor", scores_TE: "Tensor", weights_TK: "Tensor", indices_TK: "Tensor"
    ) -> Self:
        """What a router did that gives every token K experts and drops none.

        Args:
            logits_TE: float32, output of the gate.
            scores_TE: float32, the router's distribution.
            weights_TK: combine weights.
            indices_TK: int64, the experts of each token.
        """
        nothing_TE = weights_TK.new_zeros(logits_TE.shape)
        return cls(
            top_k=indices_TK.shape[1],
            logits_TE=logits_TE,
            scores_TE=scores_TE,
            probs_TE=nothing_TE.scatter(1, indices_TK, weights_TK),
            routing_map_TE=nothing_TE.bool().scatter(1, indices_TK, True),
        )

    @cached_property
    def log_softmax_TE(self) -> "Tensor":
        """Log p = logits - logsumexp(logits)."""
        return self.logits_TE.log_softmax(dim=-1)

    @cached_property
    def logsumexp_T(self) -> "Tensor":
        """LSE = ln sum_e exp(logits_e)."""
        return self.logits_TE.logsumexp(dim=-1)

    @cached_property
    def entropy_T(self) -> "Tensor":
        """H = -sum_e p_e ln p_e, in nats."""
        return -self.scores_TE.xlogy(self.scores_TE).sum(dim=-1)

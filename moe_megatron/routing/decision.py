"""`Routing`, the result of every router: the experts of each token and their combine weights.

Shapes: T tokens that are routed together, E experts, K slots of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Routing:
    """Which experts each token goes to. Stored sparsely; dense tensors are computed on request.

    A token has K slots, each for one expert. If a router gives tokens different numbers of experts,
    the slots that a token does not use are not `assigned`.
    """

    indices: Tensor
    """int64 [T, K]: the experts of each token, best first; arbitrary where not assigned."""

    weights: Tensor
    """[T, K]: combine weights, in the dtype of the logits; 0 where dropped or not assigned."""

    assigned: Tensor
    """bool [T, K]: True where the router selected the expert for the token."""

    kept: Tensor
    """bool [T, K]: False where not assigned, or where the expert was full and dropped the token."""

    num_experts: int
    """E."""

    loss: Tensor | None = None
    """Scalar, a mean over the tokens unless `loss_of_batch` is declared: a loss of the router's
    own, with its coefficient, which training adds to that of the language model; None: none."""

    copied: Tensor | None = None
    """[T]: weights with which each token's own hidden state is added to the output, the work of
    experts that only copy; None: there are none."""

    observed: Mapping[str, Tensor] = field(default_factory=dict)
    """What these tokens add to the sums of a router with a state (`state.RouterState`)."""

    @classmethod
    def of_indices(cls, indices_TK: Tensor, weights_TK: Tensor, num_experts: int) -> Self:
        """A routing with K experts for every token, none of them dropped.

        Args:
            indices_TK: int64, the experts of each token, best first.
            weights_TK: Their combine weights.
            num_experts: E.
        """
        all_slots = torch.ones_like(indices_TK, dtype=torch.bool)
        return cls(
            indices=indices_TK, weights=weights_TK, assigned=all_slots, kept=all_slots,
            num_experts=num_experts,
        )  # fmt: skip

    @classmethod
    def of_map(cls, probs_TE: Tensor, map_TE: Tensor) -> Self:
        """A routing with any number of experts for each token, none of them dropped.

        Args:
            probs_TE: Combine weights; ignored where the map is False.
            map_TE: bool, True where the token goes to the expert.
        """
        indices_TE = probs_TE.detach().masked_fill(~map_TE, -torch.inf).argsort(-1, descending=True)
        assigned_TE = map_TE.gather(1, indices_TE)
        weights_TE = probs_TE.gather(1, indices_TE).masked_fill(~assigned_TE, 0.0)
        return cls(
            indices=indices_TE, weights=weights_TE, assigned=assigned_TE, kept=assigned_TE,
            num_experts=probs_TE.shape[1],
        )  # fmt: skip

    def keeping(self, accepted_TE: Tensor) -> Self:
        """The same routing after experts have dropped the tokens that they did not accept.

        Args:
            accepted_TE: bool, True where the expert has room for the token.
        """
        kept_TK = self.kept & accepted_TE.gather(1, self.indices)
        return replace(self, kept=kept_TK, weights=self.weights * kept_TK)

    def rows(self, start: int, stop: int) -> Self:
        """The routing of some of the tokens; loss and sums are still those of all."""
        cut = slice(start, stop)
        return replace(
            self,
            indices=self.indices[cut],
            weights=self.weights[cut],
            assigned=self.assigned[cut],
            kept=self.kept[cut],
            copied=None if self.copied is None else self.copied[cut],
        )

    def losing(self, loss: Tensor) -> Self:
        """The same routing, with a loss of the router's own, already multiplied by its weight."""
        return replace(self, loss=loss)

    def copying(self, weights_T: Tensor) -> Self:
        """The same routing, with weights of each token's own hidden state in the output."""
        return replace(self, copied=weights_T)

    def observing(self, **sums: Tensor) -> Self:
        """The same routing, with what its tokens add to the sums of a router's state."""
        return replace(self, observed=sums)

    @property
    def probs(self) -> Tensor:
        """Combine weights, 0 for experts that do not get the token, [T, E]."""
        dense = self.weights.new_zeros(self.indices.shape[0], self.num_experts)
        # scatter_add, since an unassigned slot may hold the same index as an assigned one.
        return dense.scatter_add(1, self.indices, self.weights)

    @property
    def routing_map(self) -> Tensor:
        """True where the expert gets the token, bool [T, E]."""
        return self._dense(self.kept)

    @property
    def assigned_map(self) -> Tensor:
        """True where the router selected the expert for the token, dropped or not, bool [T, E]."""
        return self._dense(self.assigned)

    @property
    def tokens_per_expert(self) -> Tensor:
        """Tokens that reach each expert, int64 [E]."""
        return torch.bincount(self.indices[self.kept], minlength=self.num_experts)

    def _dense(self, slots_TK: Tensor) -> Tensor:
        dense = slots_TK.new_zeros(self.indices.shape[0], self.num_experts, dtype=torch.uint8)
        return dense.scatter_add(1, self.indices, slots_TK.to(torch.uint8)) > 0

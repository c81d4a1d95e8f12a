"""What a router did with the tokens of one micro-batch, and how that enters the counters.

`Routed` is the `RoutedTokens` passed to the measures of quantities. Its properties are computed on
first use and shared by all measures. `count` adds into a `RoutingRow`, in place and without a host
synchronisation. T is the number of tokens, E of experts. It does not know when routers count.
"""

from functools import cached_property

import torch
from torch import Tensor

from moe_megatron.mcore.cpu.fast.kernels import routing
from moe_megatron.mcore.measure.counters import RoutingRow
from moe_megatron.routing import BoundRouter
from moe_megatron.routing.description import softmax

_MANY_EXPERTS = 16
"""From this number of experts on, a row fills the processor's vectors and torch is faster."""

_SUMMED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""Precision of sums over a micro-batch, for dtypes that are not summed in their own."""


class Routed:
    """The `RoutedTokens` of one micro-batch.

    Args:
        logits_TE: [T, E], output of the gate.
        probs_TE: [T, E], combine weights.
        routing_map_TE: bool [T, E], True where an expert gets the token.
        route: The router, for its top_k and its distribution.
        assigned_map_TE: bool [T, E], the assignments before any was dropped for capacity; None
            where these are top_k experts for every token.
    """

    def __init__(
        self,
        logits_TE: Tensor,
        probs_TE: Tensor,
        routing_map_TE: Tensor,
        *,
        route: BoundRouter,
        assigned_map_TE: Tensor | None = None,
    ) -> None:
        self.logits_TE = logits_TE.float()
        self.probs_TE = probs_TE
        self.routing_map_TE = routing_map_TE
        self.assigned_map_TE = assigned_map_TE
        self.top_k = route.top_k
        self._distribution = route.distribution

    @cached_property
    def log_softmax_TE(self) -> Tensor:
        """Log p = logits - logsumexp(logits); by our kernel where experts are few."""
        logits_TE = self.logits_TE
        if logits_TE.shape[-1] >= _MANY_EXPERTS or not routing.computes(logits_TE):
            return torch.log_softmax(logits_TE, dim=-1)
        logsumexp_T: Tensor = routing.Softmax.apply(logits_TE)[1]
        return logits_TE - logsumexp_T.unsqueeze(-1)

    @cached_property
    def logsumexp_T(self) -> Tensor:
        """LSE = logits - log_softmax, taken at expert 0: it is the same for every expert."""
        return self.logits_TE.select(1, 0) - self.log_softmax_TE.select(1, 0)

    @cached_property
    def scores_TE(self) -> Tensor:
        """The router's distribution over experts; rows sum to 1."""
        if self._distribution is softmax:
            return self.log_softmax_TE.exp()
        return self._distribution(self.logits_TE)

    @cached_property
    def entropy_T(self) -> Tensor:
        """H = -sum_e p_e ln p_e, in nats."""
        entropy_T: Tensor
        if self._distribution is softmax:
            entropy_T = torch.linalg.vecdot(self.scores_TE, self.log_softmax_TE).neg_()
        else:
            entropy_T = torch.special.entr(self.scores_TE).sum(dim=-1)
        return entropy_T


def count(
    row: RoutingRow,
    routed: Routed,
    padding_T: Tensor | None = None,
    tasks_T: Tensor | None = None,
) -> None:
    """Add what a router did to the counters of its layer.

    Args:
        row: The counters.
        routed: What the router did.
        padding_T: bool [T], True for padding, which is not counted.
        tasks_T: int64 [T], the task of each token, or -1; where the row counts by task.

    Raises:
        ConfigError: The measure of a quantity does not return one value per token.
    """
    num_tokens: int | Tensor = routed.logits_TE.shape[0]
    scores_TE, map_TE, assigned_TE = routed.scores_TE, routed.routing_map_TE, routed.assigned_map_TE
    if padding_T is not None:
        valid_T = ~padding_T
        num_tokens = valid_T.sum()
        scores_TE, map_TE = scores_TE * valid_T.unsqueeze(-1), map_TE & valid_T.unsqueeze(-1)
        assigned_TE = None if assigned_TE is None else assigned_TE & valid_T.unsqueeze(-1)
    row.tokens.add_(num_tokens)
    row.tokens_per_expert.add_(map_TE.sum(dim=0))
    if row.by_task is not None and tasks_T is not None:
        known_TE = map_TE & (tasks_T >= 0).unsqueeze(-1)
        row.by_task.index_add_(0, tasks_T.clamp(min=0), known_TE.to(row.by_task.dtype))
    if assigned_TE is not None:
        row.beyond_top_k.add_(assigned_TE.sum() - num_tokens * routed.top_k)
    row.prob_sums.add_(scores_TE.sum(dim=0))
    for quantity, total in zip(row.quantities, row.sums, strict=True):
        value_T = quantity.of_tokens(routed)
        if padding_T is not None:
            value_T = value_T.masked_fill(padding_T, 0)
        total.add_(value_T.sum(dtype=_SUMMED_IN.get(value_T.dtype)))

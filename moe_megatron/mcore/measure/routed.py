"""What a router did with the tokens of one micro-batch, and how it is added into the counters.

`Routed` is the `RoutedTokens` that measures of quantities get: what several of them need is
computed once, and what none needs is not. `count` adds into a `RoutingRow`, in place and without a
host synchronisation. T is the number of tokens, E of experts. It does not know when routers count.
"""

from functools import cached_property

import torch
from torch import Tensor

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.cpu.fast.kernels import routing
from moe_megatron.mcore.measure.counters import RoutingRow
from moe_megatron.routing import BoundRouter
from moe_megatron.routing.registry import softmax
from moe_megatron.telemetry.quantity import Quantity

_MANY_EXPERTS = 16
"""From so many on they fill the processor's vectors, and torch is quicker than our kernel."""

_SUMMED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""Precision of sums over a micro-batch, where it is not that of the values."""


class Routed:
    """A `RoutedTokens`.

    Args:
        logits_TE: [T, E], output of the gate.
        probs_TE: [T, E], combine weights.
        routing_map_TE: bool [T, E], True where an expert gets the token.
        route: The router, for its top_k and its distribution.
        asked_map_TE: bool [T, E], what the router asked for before experts dropped any; None where
            that is top_k experts for every token.
    """

    def __init__(
        self,
        logits_TE: Tensor,
        probs_TE: Tensor,
        routing_map_TE: Tensor,
        *,
        route: BoundRouter,
        asked_map_TE: Tensor | None = None,
    ) -> None:
        self.logits_TE = logits_TE.float()
        self.probs_TE = probs_TE
        self.routing_map_TE = routing_map_TE
        self.asked_map_TE = asked_map_TE
        self.top_k = route.top_k
        self._distribution = route.distribution

    @cached_property
    def log_softmax_TE(self) -> Tensor:
        """Logits less their logsumexp; by our kernel where experts are few and torch is slow."""
        logits_TE = self.logits_TE
        if logits_TE.shape[-1] >= _MANY_EXPERTS or not routing.computes(logits_TE):
            return torch.log_softmax(logits_TE, dim=-1)
        logsumexp_T: Tensor = routing.Softmax.apply(logits_TE)[1]
        return logits_TE - logsumexp_T.unsqueeze(-1)

    @cached_property
    def logsumexp_T(self) -> Tensor:
        """Logits less their log_softmax, the same at every expert: it takes no pass over them."""
        return self.logits_TE.select(1, 0) - self.log_softmax_TE.select(1, 0)

    @cached_property
    def scores_TE(self) -> Tensor:
        """The router's distribution over experts; rows sum to 1."""
        if self._distribution is softmax:
            return self.log_softmax_TE.exp()
        return self._distribution(self.logits_TE)

    @cached_property
    def entropy_T(self) -> Tensor:
        """-sum over experts of p * ln p, in nats."""
        entropy_T: Tensor
        if self._distribution is softmax:
            entropy_T = torch.linalg.vecdot(self.scores_TE, self.log_softmax_TE).neg_()
        else:
            entropy_T = torch.special.entr(self.scores_TE).sum(dim=-1)
        return entropy_T


def count(row: RoutingRow, routed: Routed, padding_T: Tensor | None = None) -> None:
    """Add what a router did to the counters of its layer.

    Args:
        row: The counters.
        routed: What it did.
        padding_T: bool [T], True for padding, which is not counted.

    Raises:
        ConfigError: A quantity does not give one value a token.
    """
    length: int = routed.logits_TE.shape[0]
    num_tokens: int | Tensor = length
    scores_TE, map_TE, asked_TE = routed.scores_TE, routed.routing_map_TE, routed.asked_map_TE
    if padding_T is not None:
        valid_T = ~padding_T
        num_tokens = valid_T.sum()
        scores_TE, map_TE = scores_TE * valid_T.unsqueeze(-1), map_TE & valid_T.unsqueeze(-1)
        asked_TE = None if asked_TE is None else asked_TE & valid_T.unsqueeze(-1)
    row.tokens.add_(num_tokens)
    row.tokens_per_expert.add_(map_TE.sum(dim=0))
    if asked_TE is not None:
        row.beyond_top_k.add_(asked_TE.sum() - num_tokens * routed.top_k)
    row.prob_sums.add_(scores_TE.sum(dim=0))
    for quantity, total in zip(row.quantities, row.sums, strict=True):
        assert quantity.measure is not None
        value_T = quantity.measure(routed)
        if getattr(value_T, "shape", None) != (length,):
            raise _not_one_a_token(quantity, value_T, length)
        if padding_T is not None:
            value_T = value_T.masked_fill(padding_T, 0)
        total.add_(value_T.sum(dtype=_SUMMED_IN.get(value_T.dtype)))


def _not_one_a_token(quantity: Quantity, value: object, length: int) -> ConfigError:
    found = list(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
    return ConfigError(
        f"the measure of the quantity '{quantity.name}' must give one value a token, a tensor "
        f"[{length}], and gave {found}."
    )

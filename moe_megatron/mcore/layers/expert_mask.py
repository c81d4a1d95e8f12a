"""Experts of one layer that get no tokens, because something is wrong with them.

Their logits become `MASKED_LOGIT` before the choice, and so does their balancing bias, so that no
token chooses them and the weights of the others add up as if they did not exist. A router that
chooses by something else, such as a hash, an even assignment or a bias of its own, may still name
them: then a token goes to its next best expert, or does without where their number varies. For the
update of a bias or a state they count as exactly average, which leaves their own and the balance of
the others alone. It does not know who masks an expert, or why. Shapes: T tokens, E experts, K slots
of a token.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moe_megatron.routing import Routing
from moe_megatron.routing.state import State

MASKED_LOGIT = -1e4
"""exp(-1e4) is exactly 0 in every format. It is finite, so that 0 * log 0 stays 0."""


class ExpertMask:
    """The masked experts of one router.

    Args:
        experts: Their numbers, from 0.
        num_experts: Number of experts of the layer.
        device: Device of the router.
    """

    def __init__(self, experts: Iterable[int], num_experts: int, device: torch.device) -> None:
        self.masked_E = torch.zeros(num_experts, dtype=torch.bool, device=device)
        self.masked_E[sorted(experts)] = True

    def logits(self, logits: Tensor) -> Tensor:
        """The logits [..., E] to route with; masked experts get no gradient through them.

        Of a gate with more rows, for experts that compute nothing, the first E are meant.
        """
        more = logits.shape[-1] - len(self.masked_E)
        return logits.masked_fill(functional.pad(self.masked_E, (0, more)), MASKED_LOGIT)

    def routing(self, routing: Routing, logits_TE: Tensor, *, fixed_number: bool) -> Routing:
        """The routing without the masked experts, which a router may have named all the same.

        Args:
            routing: What it chose.
            logits_TE: What it was given, in which the next best experts are found.
            fixed_number: Whether a token must have as many experts as before.
        """
        lost_TK = self.masked_E[routing.indices] & routing.assigned
        if not bool(lost_TK.any()):
            return routing
        if not fixed_number:
            left_TK = routing.assigned & ~lost_TK
            weights_TK = routing.weights.masked_fill(~left_TK, 0.0)
            kept_TK = routing.kept & left_TK
            return replace(routing, weights=weights_TK, assigned=left_TK, kept=kept_TK)
        scores_TE = logits_TE.detach()[:, : routing.num_experts].float()
        taken_TE = routing.routing_map | self.masked_E
        next_TE = scores_TE.masked_fill(taken_TE, -torch.inf).argsort(-1, descending=True)
        place_TK = (lost_TK.cumsum(dim=-1) - 1).clamp(min=0)
        indices_TK = torch.where(lost_TK, next_TE.gather(-1, place_TK), routing.indices)
        return replace(routing, indices=indices_TK)

    def observed(self, sums: State) -> State:
        """What a router adds to the sums of its state, with masked experts as average ones.

        Args:
            sums: By name; those whose first axis is the experts.
        """
        found = dict(sums)
        for name, value in found.items():
            if value.shape[:1] == self.masked_E.shape:
                found[name] = value = value.detach().double().clone()
                value[self.masked_E] = value[~self.masked_E].mean(dim=0)
        return found

    @contextmanager
    def bias_of(self, router: Any) -> Iterator[None]:
        """Hide the masked experts from a router's balancing bias while it routes.

        Args:
            router: Megatron's `TopKRouter`, with or without a bias.
        """
        bias_E = router.expert_bias
        if bias_E is None:
            yield
            return
        router.expert_bias = bias_E.masked_fill(self.masked_E, MASKED_LOGIT)
        try:
            yield
        finally:
            router.expert_bias = bias_E
        counts_E = router.local_tokens_per_expert
        counts_E[self.masked_E] = counts_E[~self.masked_E].mean()

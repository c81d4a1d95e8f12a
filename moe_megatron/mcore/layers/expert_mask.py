"""Experts of one layer that get no tokens, because something is wrong with them.

Their logits become `MASKED_LOGIT` before the choice, and so does their balancing bias, so that no
token chooses them and the weights of the others add up as if they did not exist. For the update of
the bias they count as exactly average, which leaves their own bias and the balance of the others
alone. It does not know who masks an expert, or why.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

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
        """The logits [..., E] to route with; masked experts get no gradient through them."""
        return logits.masked_fill(self.masked_E, MASKED_LOGIT)

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

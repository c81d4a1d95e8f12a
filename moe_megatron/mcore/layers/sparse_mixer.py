"""Megatron's router with the choice of SparseMixer-v2 (`routing.sparse_mixer`), measured.

The losses of the router, its jitter and its weights stay Megatron's; only the choice is another.
"""

from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import compute_routing_scores_for_aux_loss
from megatron.core.transformer.moe.router import TopKRouter

from moe_megatron.mcore.layers.router import MeasuredRouter
from moe_megatron.routing import route_sparse_mixer


class _SparseMixerRouter(TopKRouter):
    """`TopKRouter`, but for its choice."""

    def __init__(self, *args: Any, jitter: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jitter = jitter

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Route [sequence, batch, experts]; as `TopKRouter.routing`."""
        length, batch = logits.shape[:2]
        logits = logits.view(-1, logits.shape[-1])
        if padding_mask is not None:
            padding_mask = padding_mask.reshape(-1)
        logits = self.apply_z_loss(logits, padding_mask=padding_mask)
        choice = route_sparse_mixer(logits, self.topk, jitter=self._jitter, training=self.training)
        probs = choice.probs
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            balanced, scores = compute_routing_scores_for_aux_loss(
                logits, self.topk, self.score_function, padding_mask=padding_mask
            )
            masked = {"with_padding_mask": padding_mask is not None}
            probs = self._apply_aux_loss(probs, scores, balanced, **masked)
            probs = self._apply_seq_aux_loss(probs, scores, balanced, length, batch, **masked)
            probs = self._apply_global_aux_loss(probs, scores, balanced, **masked)
        return probs, choice.routing_map


class MeasuredSparseMixer(MeasuredRouter, _SparseMixerRouter):
    """SparseMixer-v2 with exact counters.

    Args:
        jitter: `moe.sparse_mixer_jitter`; everything else as for `TopKRouter`.
    """

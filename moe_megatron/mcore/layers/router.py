"""Megatron's top-k router, measured.

`MeasuredRouter` routes exactly as `TopKRouter` does, and has what it decided counted into a
`RoutingRow` by `measure/routed`. That happens in training only, and once per token: activation
recomputation runs a layer's forward pass first without gradients, which is not counted, and again
with them, which is.
"""

import torch
from megatron.core.transformer.moe.router import TopKRouter

from moe_megatron.mcore.measure.counters import RoutingRow
from moe_megatron.mcore.measure.routed import Routed, count


class MeasuredRouter(TopKRouter):
    """`TopKRouter` with exact counters; without a row attached it is `TopKRouter`."""

    _row: RoutingRow | None = None

    def attach(self, row: RoutingRow | None) -> None:
        """Count into `row` from now on; None stops counting."""
        self._row = row

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Route, then count.

        Args:
            logits: [sequence, batch, experts] gate output.
            padding_mask: bool [sequence, batch], True for padding, which is not counted.

        Returns:
            probs and routing_map, both [sequence * batch, experts].
        """
        probs, routing_map = super().routing(logits, padding_mask=padding_mask)
        if self._row is not None and self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self._count(self._row, logits, probs, routing_map, padding_mask)
        return probs, routing_map

    def _count(
        self,
        row: RoutingRow,
        logits: torch.Tensor,
        probs: torch.Tensor,
        routing_map: torch.Tensor,
        padding_mask: torch.Tensor | None,
    ) -> None:
        if self.config.moe_pad_expert_input_to_capacity:
            # The map also holds the tokens that only fill an expert's buffer, at weight zero.
            routing_map = routing_map & (probs > 0)
        routed = Routed(
            logits.reshape(-1, logits.shape[-1]),
            probs,
            routing_map,
            top_k=self.topk,
            score_function=self.score_function,
        )
        count(row, routed, None if padding_mask is None else padding_mask.reshape(-1))

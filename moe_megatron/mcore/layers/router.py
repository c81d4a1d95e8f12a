"""Megatron's top-k router, measured.

`MeasuredRouter` routes exactly as `TopKRouter` does and adds what it decided to a `RoutingRow`. It
counts in training only, and once per token: activation recomputation runs a layer's forward pass
first without gradients, which is not counted, and again with them, which is.
"""

import torch
from megatron.core.transformer.moe.router import TopKRouter

from moe_megatron.mcore.cpu.fast.kernels import routing
from moe_megatron.mcore.measure.counters import RoutingRow

_MANY_EXPERTS = 16
"""From so many on they fill the processor's vectors, and torch is quicker than our kernel."""


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
        logits = logits.reshape(-1, logits.shape[-1]).float()
        log_softmax = _log_softmax(logits)
        # Their difference is the logsumexp, at every expert, and one exp gives the distribution:
        # on a CPU such passes over few experts are what counting costs.
        z_values = (logits[:, 0] - log_softmax[:, 0]).square()
        scores, entropy = self._distribution(logits, log_softmax)
        if padding_mask is not None:
            valid = ~padding_mask.reshape(-1)
            routing_map = routing_map & valid.unsqueeze(-1)
            scores, entropy, z_values = (
                scores * valid.unsqueeze(-1),
                entropy * valid,
                z_values * valid,
            )
            row.tokens.add_(valid.sum())
        else:
            row.tokens.add_(logits.shape[0])
        row.tokens_per_expert.add_(routing_map.sum(dim=0))
        row.prob_sums.add_(scores.sum(dim=0))
        row.sums.add_(torch.stack((entropy.sum(), z_values.sum())))

    def _distribution(
        self, logits: torch.Tensor, log_softmax: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The router's distribution over all experts, and its entropy in nats.

        Returns:
            [tokens, experts], rows summing to one, and [tokens].
        """
        if self.score_function == "softmax":
            scores = log_softmax.exp()
            return scores, -torch.linalg.vecdot(scores, log_softmax)
        scores = (
            torch.sigmoid(logits)
            if self.score_function == "sigmoid"
            else torch.nn.functional.softplus(logits).sqrt()
        )
        scores = scores / scores.sum(dim=-1, keepdim=True).clamp_min(1e-20)
        return scores, torch.special.entr(scores).sum(dim=-1)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """`torch.log_softmax` over the last dimension, which is slow on a CPU where experts are few."""
    if logits.shape[-1] >= _MANY_EXPERTS or not routing.computes(logits):
        return torch.log_softmax(logits, dim=-1)
    logsumexp: torch.Tensor = routing.Softmax.apply(logits)[1]
    return logits - logsumexp.unsqueeze(-1)

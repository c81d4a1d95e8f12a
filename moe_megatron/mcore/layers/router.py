"""Every router of `moe_megatron.routing` in Megatron, measured.

`MeasuredRouter` is Megatron's router with another choice of experts; gate, jitter, auxiliary
losses, capacity and the bias that balances stay Megatron's. It adds what was decided to a
`RoutingRow`: in training only, and once per token, as activation recomputation runs a layer's
forward pass first without gradients, which is not counted, and again with them, which is.
"""

from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from moe_megatron.mcore.cpu.fast.kernels import routing as kernels
from moe_megatron.mcore.measure.counters import RoutingRow
from moe_megatron.routing import BoundRouter, Routing
from moe_megatron.routing.registry import softmax

NATIVE = "top_k"
"""The router that Megatron has itself, with its kernels and assignment algorithms."""

_MANY_EXPERTS = 16
"""From so many on they fill the processor's vectors, and torch is quicker than our kernel."""


class MeasuredRouter(TopKRouter):
    """`TopKRouter` with the choice of any router, and exact counters once a row is attached.

    Args:
        route: The router; everything else as for `TopKRouter`.
    """

    _row: RoutingRow | None = None
    _hidden: Tensor | None = None

    def __init__(self, *args: Any, route: BoundRouter, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._route = route

    def attach(self, row: RoutingRow | None) -> None:
        """Count into `row` from now on; None stops counting."""
        self._row = row

    def gating(self, input: Tensor) -> Tensor:  # Megatron's signature
        """The gate's logits; [sequence, batch, hidden] to [sequence, batch, experts]."""
        if self._route.asks_for("hidden"):
            self._hidden = input.reshape(-1, input.shape[-1])
        return super().gating(input)  # type: ignore[no-any-return]

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route, then count.

        Args:
            logits: [sequence, batch, experts] gate output.
            padding_mask: bool [sequence, batch], True for padding, which is not counted.

        Returns:
            probs and routing_map, both [sequence * batch, experts].
        """
        if self._route.router.name == NATIVE:
            probs_TE, map_TE = super().routing(logits, padding_mask=padding_mask)
        else:
            probs_TE, map_TE = self._choose(logits, padding_mask)
        if self._row is not None and self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self._count(self._row, logits, probs_TE, map_TE, padding_mask)
        return probs_TE, map_TE

    def _choose(self, logits: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """`TopKRouter.routing` with the router's choice."""
        config, (length, batch) = self.config, logits.shape[:2]
        padding_T = None if padding_mask is None else padding_mask.reshape(-1)
        logits_TE = self.apply_z_loss(logits.view(-1, logits.shape[-1]), padding_mask=padding_T)
        hidden, self._hidden = self._hidden, None
        routing = self._route(
            logits_TE,
            hidden=hidden,
            padding=padding_T,
            training=self.training,
            expert_bias=self.expert_bias,
        )
        probs_TE, map_TE = routing.probs, routing.routing_map
        if config.moe_expert_capacity_factor is not None:
            probs_TE, map_TE = apply_router_token_dropping(
                probs_TE,
                map_TE,
                router_topk=self.topk,
                capacity_factor=config.moe_expert_capacity_factor,
                drop_policy=config.moe_token_drop_policy,
                pad_to_capacity=config.moe_pad_expert_input_to_capacity,
            )
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            scores_TE, chosen_TE = self._balanced(logits_TE, routing, padding_T)
            masked = {"with_padding_mask": padding_T is not None}
            probs_TE = self._apply_aux_loss(probs_TE, scores_TE, chosen_TE, **masked)
            probs_TE = self._apply_seq_aux_loss(
                probs_TE, scores_TE, chosen_TE, length, batch, **masked
            )
            probs_TE = self._apply_global_aux_loss(probs_TE, scores_TE, chosen_TE, **masked)
        self._apply_expert_bias(
            map_TE, padding_mask=None if padding_T is None else padding_T.unsqueeze(-1)
        )
        return probs_TE, map_TE

    def _balanced(
        self, logits_TE: Tensor, routing: Routing, padding_T: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Distribution and choice that the load balancing losses look at, without padding."""
        scores_TE = self._route.distribution(logits_TE)
        chosen_TE = self._route.balancing_map(scores_TE, routing)
        if padding_T is not None:
            valid_T1 = (~padding_T).unsqueeze(-1)
            scores_TE, chosen_TE = scores_TE * valid_T1, chosen_TE & valid_T1
        return scores_TE, chosen_TE

    def _count(
        self,
        row: RoutingRow,
        logits: Tensor,
        probs_TE: Tensor,
        map_TE: Tensor,
        padding_mask: Tensor | None,
    ) -> None:
        if self.config.moe_pad_expert_input_to_capacity:
            # The map also holds the tokens that only fill an expert's buffer, at weight zero.
            map_TE = map_TE & (probs_TE > 0)
        logits_TE = logits.reshape(-1, logits.shape[-1]).float()
        log_softmax_TE = _log_softmax(logits_TE)
        # Their difference is the logsumexp, at every expert, and one exp gives the distribution:
        # on a CPU such passes over few experts are what counting costs.
        z_values_T = (logits_TE[:, 0] - log_softmax_TE[:, 0]).square()
        if self._route.distribution is softmax:
            scores_TE = log_softmax_TE.exp()
            entropy_T = -torch.linalg.vecdot(scores_TE, log_softmax_TE)
        else:
            scores_TE = self._route.distribution(logits_TE)
            entropy_T = torch.special.entr(scores_TE).sum(dim=-1)
        if padding_mask is not None:
            valid_T = ~padding_mask.reshape(-1)
            valid_T1 = valid_T.unsqueeze(-1)
            map_TE, scores_TE = map_TE & valid_T1, scores_TE * valid_T1
            entropy_T, z_values_T = entropy_T * valid_T, z_values_T * valid_T
            row.tokens.add_(valid_T.sum())
        else:
            row.tokens.add_(logits_TE.shape[0])
        row.tokens_per_expert.add_(map_TE.sum(dim=0))
        row.prob_sums.add_(scores_TE.sum(dim=0))
        row.sums.add_(torch.stack((entropy_T.sum(), z_values_T.sum())))


def _log_softmax(logits_TE: Tensor) -> Tensor:
    """`torch.log_softmax` over the last dimension, which is slow on a CPU where experts are few."""
    if logits_TE.shape[-1] >= _MANY_EXPERTS or not kernels.computes(logits_TE):
        return torch.log_softmax(logits_TE, dim=-1)
    logsumexp_T: Tensor = kernels.Softmax.apply(logits_TE)[1]
    return logits_TE - logsumexp_T.unsqueeze(-1)

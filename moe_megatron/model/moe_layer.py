"""The MoE layer: a router, experts and optionally a shared expert that every token visits.

It takes the place of a dense MLP. It reports routing decisions and unscaled losses; the model
applies the coefficients.
"""

import torch
from torch import Tensor, nn

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.experts import ExpertPool, expert_builder
from moe_megatron.model.layers import FeedForward
from moe_megatron.model.outputs import RoutingInfo
from moe_megatron.model.router import Router
from moe_megatron.routing import (
    Routing,
    load_balancing_loss,
    router_entropy,
    sequence_load_balancing_loss,
    z_loss,
)


class MoELayer(nn.Module):
    """y = sum over the top-k experts of weight_e * expert_e(x), + shared(x) (arXiv:1701.06538)."""

    shared_expert: FeedForward | None
    shared_gate: nn.Linear | None

    def __init__(
        self,
        model: ModelConfig,
        moe: MoEConfig,
        num_experts: int,
        layer: int,
    ) -> None:
        super().__init__()
        self.config = moe
        self.layer = layer
        inner_size = moe.expert_hidden_size or model.dense_ffn_size
        shared = moe.shared_expert_hidden_size
        self.router = Router(moe, num_experts, model.hidden_size, add_bias=model.add_bias)
        build = expert_builder(moe) or (
            lambda _, inner: FeedForward(model, inner, moe.expert_dropout)
        )
        self.experts = ExpertPool(build, num_experts, model.hidden_size, inner_size)
        self.shared_expert = None if shared is None else FeedForward(model, shared)
        gated = self.shared_expert is not None and moe.shared_expert_gate
        self.shared_gate = nn.Linear(model.hidden_size, 1, bias=False) if gated else None

    def forward(
        self, hidden: Tensor, valid: Tensor | None, token_ids: Tensor | None = None
    ) -> tuple[Tensor, RoutingInfo]:
        """Apply the layer.

        Args:
            hidden: [batch, seq, hidden].
            valid: bool [batch, seq], False for padding, which is not routed; None if there is none.
            token_ids: int64 [batch, seq], for routers that look at them.

        Returns:
            The output, [batch, seq, hidden], to which routed experts add 0 for padding; and what
            the router decided.
        """
        if valid is None:
            valid = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        tokens = hidden[valid]
        logits_TE, routing = self.router(tokens, None if token_ids is None else token_ids[valid])
        output_TH = self.experts(tokens, routing)
        if routing.copied is not None:
            output_TH = output_TH + routing.copied.unsqueeze(-1) * tokens
        output = _scatter(output_TH, valid)
        if self.shared_expert is not None:
            shared = self.shared_expert(hidden)
            if self.shared_gate is not None:
                shared = shared * self.shared_gate(hidden).sigmoid()
            output = output + shared
        return output, self._report(logits_TE, routing, valid)

    def _report(self, logits_TE: Tensor, routing: Routing, valid: Tensor) -> RoutingInfo:
        scores_TE = self.router.route.distribution(logits_TE)
        indices_TK = routing.indices.masked_fill(~routing.assigned, -1)
        return RoutingInfo(
            layer=self.layer,
            indices=_scatter(indices_TK, valid, padding=-1),
            weights=_scatter(routing.weights.detach(), valid),
            scores=_scatter(scores_TE.detach(), valid),
            tokens_per_expert=routing.tokens_per_expert,
            dropped=(routing.assigned & ~routing.kept).sum(),
            entropy=router_entropy(scores_TE.detach()),
            aux_loss=self._aux_loss(scores_TE, routing, valid),
            z_loss=z_loss(logits_TE),
            own_loss=routing.loss,
        )

    def _aux_loss(self, scores_TE: Tensor, routing: Routing, valid: Tensor) -> Tensor:
        top_k, route = self.config.top_k, self.router.route
        chosen_TE = route.balancing_map(scores_TE.detach(), routing)
        if self.config.load_balancing != "seq_aux_loss":
            return load_balancing_loss(scores_TE, chosen_TE, top_k)
        sequence_T = valid.nonzero()[:, 0]
        return sequence_load_balancing_loss(scores_TE, chosen_TE, top_k, sequence_T, len(valid))


def _scatter(rows: Tensor, valid: Tensor, padding: int = 0) -> Tensor:
    """Put the rows of valid tokens, [tokens, width], back in place: [batch, seq, width]."""
    spread = rows.new_full((*valid.shape, rows.shape[1]), padding)
    return spread.masked_scatter(valid.unsqueeze(-1), rows)

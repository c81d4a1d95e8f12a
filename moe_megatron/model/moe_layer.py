"""The MoE layer: a router, experts and optionally a shared expert that every token visits.

It takes the place of a dense MLP. It reports routing decisions and unscaled losses; the model
applies the coefficients.
"""

import torch
from torch import Tensor, nn

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.experts import ExpertPool, expert_builder
from moe_megatron.model.layers import FeedForward
from moe_megatron.model.router import Router
from moe_megatron.routing import Routing, RoutingInfo
from moe_megatron.routing.info import describe, in_places


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
        self,
        hidden: Tensor,
        valid: Tensor | None,
        token_ids: Tensor | None = None,
        domain_ids: Tensor | None = None,
        task_ids: Tensor | None = None,
    ) -> tuple[Tensor, RoutingInfo]:
        """Apply the layer.

        Args:
            hidden: [batch, seq, hidden].
            valid: bool [batch, seq], False for padding, which is not routed; None if there is none.
            token_ids: int64 [batch, seq], for routers that look at them.
            domain_ids: int64 [batch], the same; None: they are not known.
            task_ids: As domain_ids.

        Returns:
            The output, [batch, seq, hidden], to which routed experts add 0 for padding; and what
            the router decided.
        """
        if valid is None:
            valid = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        tokens = hidden[valid]
        order = None
        if self.config.capacity_factor is not None:
            # As in Megatron: the first tokens of all sequences come before the second ones.
            sequence_T, position_T = valid.nonzero(as_tuple=True)
            order = (position_T * len(valid) + sequence_T).argsort()
        ids = None if token_ids is None else token_ids[valid]
        domains, tasks = (
            None if of_rows is None else of_rows.unsqueeze(1).expand_as(valid)[valid]
            for of_rows in (domain_ids, task_ids)
        )
        logits_TE, routing = self.router(tokens, ids, order, domains, tasks)
        output_TH = self.experts(tokens, routing)
        if routing.copied is not None:
            output_TH = output_TH + routing.copied.unsqueeze(-1) * tokens
        output = in_places(output_TH, valid)
        if self.shared_expert is not None:
            shared = self.shared_expert(hidden)
            if self.shared_gate is not None:
                shared = shared * self.shared_gate(hidden).sigmoid()
            output = output + shared
        return output, self._report(logits_TE, routing, valid)

    def _report(self, logits_TE: Tensor, routing: Routing, valid: Tensor) -> RoutingInfo:
        of_sequences = self.config.load_balancing == "seq_aux_loss"
        return describe(
            self.router.route,
            logits_TE,
            routing,
            valid,
            layer=self.layer,
            of_sequences=of_sequences,
        )

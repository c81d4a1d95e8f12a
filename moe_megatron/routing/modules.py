"""`TopKRouter` and `ExpertChoice`: a gate and a router as a module, for a notebook.

They are thin over the functions that models here route with: a matrix, and a call. Training under
Megatron does not use them, and they keep nothing from one call to the next.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.config import MoEConfig, RouterConfig
from moe_megatron.config.arguments import explained, real, shown, whole
from moe_megatron.errors import ConfigError
from moe_megatron.routing.cutoffs import batch_cutoffs, route_above
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.info import RoutingInfo, describe, in_places
from moe_megatron.routing.registry import bind, find_router

RoutingDecision = Routing
"""What experts that choose tokens decided: rows are tokens, batch after batch."""

_INIT_STD = 0.02


class _Gate(nn.Module):
    """logits = x W^T, in float32 at least."""

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__()
        self.hidden_size = whole("hidden_size", hidden_size)
        self.num_experts = whole("num_experts", num_experts)
        self.weight = nn.Parameter(torch.randn(self.num_experts, self.hidden_size) * _INIT_STD)

    def _logits(self, hidden: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The logits of the tokens that count, [T, E], and which these are, bool [batch, seq]."""
        if not isinstance(hidden, Tensor) or hidden.dim() < 2 or not hidden.is_floating_point():
            given = f"{hidden.dtype} {list(hidden.shape)}" if isinstance(hidden, Tensor) else None
            raise ConfigError(
                f"hidden_states ({given or shown(hidden)}) must be floating-point numbers of the "
                f"shape [batch, seq, {self.hidden_size}] or [tokens, {self.hidden_size}]."
            )
        if hidden.shape[-1] != self.hidden_size:
            raise ConfigError(
                f"hidden_states {list(hidden.shape)} have {hidden.shape[-1]} features, and this "
                f"router was made for hidden_size {self.hidden_size}."
            )
        places = hidden.shape[:-1]
        valid = hidden.new_ones(places, dtype=torch.bool)
        if attention_mask is not None:
            if attention_mask.shape != places:
                raise ConfigError(
                    f"attention_mask {list(attention_mask.shape)} must have the shape "
                    f"{list(places)} of the tokens, with 0 for padding."
                )
            valid = attention_mask.bool()
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return functional.linear(hidden[valid].to(dtype), self.weight.to(dtype)), valid


@explained
class TopKRouter(_Gate):
    """Each token chooses its experts.

        router = TopKRouter(hidden_size=64, num_experts=8)
        weights, indices, info = router(torch.randn(2, 16, 64), top_k=2)
        loss = 0.01 * info.aux_loss + 0.001 * info.z_loss

    `weight` is [experts, hidden].

    Args:
        hidden_size: Features of a token.
        num_experts: Experts.
        **options: Of the router "top_k", such as score_function="sigmoid".

    Raises:
        ConfigError: A size or an option is wrong.
    """

    def __init__(self, hidden_size: int, num_experts: int, **options: Any) -> None:
        super().__init__(hidden_size, num_experts)
        self.options = RouterConfig(name="top_k", options=options)
        find_router("top_k").configured(self.options)

    def forward(
        self, hidden_states: Tensor, top_k: int = 2, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, RoutingInfo]:
        """Route.

        Args:
            hidden_states: [batch, seq, hidden] or [tokens, hidden].
            top_k: Experts for each token. The weight of a single one is its probability.
            attention_mask: [batch, seq], 0 for padding, which has no experts; None: there is none.

        Returns:
            Combine weights, [batch, seq, top_k], 0 for padding; indices of the experts, int64, best
            first, -1 for padding; and what there is to know beside, losses among it, which carries
            gradients as the weights do.

        Raises:
            ConfigError: A shape or `top_k` does not fit.
        """
        top_k, router = whole("top_k", top_k), self.options
        if top_k == 1 and router.option("score_function", "softmax") == "softmax":
            router = RouterConfig(name="top_k", options={**router.options, "pre_softmax": True})
        route = bind(MoEConfig(num_experts=self.num_experts, top_k=top_k, router=router))
        logits_TE, valid = self._logits(hidden_states, attention_mask)
        context = {"hidden": None, "padding": None, "expert_bias": None, "state": None}
        unknown_T = torch.full(logits_TE.shape[:1], -1, device=logits_TE.device)
        routing = route(
            logits_TE,
            training=self.training,
            token_ids=None,
            domain_ids=unknown_T,
            task_ids=unknown_T,
            **context,
        )
        info = describe(route, logits_TE, routing, valid)
        return in_places(routing.weights, valid), info.indices, info


@explained
class ExpertChoice(_Gate):
    """Each expert chooses its tokens, all experts equally many (arXiv:2202.09368).

        decision = ExpertChoice(hidden_size=64, num_experts=8)(torch.randn(2, 16, 64))
        decision.routing_map.sum(dim=0)     # 4 tokens for each of 8 experts

    Which experts a token has depends on all tokens of the call, later ones too. Models route with
    `router_type="expert_choice"`, which learns cutoffs for the time after training.

    Args:
        hidden_size: Features of a token.
        num_experts: Experts.

    Raises:
        ConfigError: A size is wrong.
    """

    def __init__(self, hidden_size: int, num_experts: int) -> None:
        super().__init__(hidden_size, num_experts)

    def forward(
        self,
        hidden_states: Tensor,
        capacity_factor: float = 1.0,
        attention_mask: Tensor | None = None,
    ) -> RoutingDecision:
        """Route.

        Args:
            hidden_states: [batch, seq, hidden] or [tokens, hidden].
            capacity_factor: Experts for each token on average: each expert takes
                ceil(T * capacity_factor / E) of T tokens.
            attention_mask: [batch, seq], 0 for padding, which no expert takes and which does not
                count; None: there is none.

        Returns:
            The decision, of whose tokens `routing_map` and `probs` are [T, E]: those that count,
            in their order.

        Raises:
            ConfigError: A shape or `capacity_factor` does not fit.
        """
        factor = real("capacity_factor", capacity_factor, example=1.0, above=True)
        logits_TE, _ = self._logits(hidden_states, attention_mask)
        log_probs_TE = torch.log_softmax(logits_TE, dim=-1)
        cutoff_E = batch_cutoffs(log_probs_TE, factor, None)
        return route_above(cutoff_E, log_probs_TE, None, training=False, dtype=logits_TE.dtype)

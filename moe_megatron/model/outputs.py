"""What a forward pass returns: logits, losses and every routing decision.

These are plain records. How the numbers come about is said in `moe_layer` and `moe_model`.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingInfo:
    """What the router of one MoE layer decided. Padding has no experts and counts nowhere.

    With an expert parallel group, these are the tokens of this process.
    """

    layer: int
    """Global layer number, from 1."""

    indices: Tensor
    """int64 [batch, seq, top_k]: experts of each token, best first; -1 for padding, and for slots
    that a router with different numbers of experts leaves free."""

    weights: Tensor
    """[batch, seq, top_k]: combine weights; 0 where dropped, and for padding."""

    scores: Tensor
    """float32 [batch, seq, experts]: router distribution, rows summing to 1; 0 for padding."""

    tokens_per_expert: Tensor
    """int64 [experts]: assignments that reached each expert."""

    dropped: Tensor
    """int64 scalar: assignments dropped by full experts."""

    entropy: Tensor
    """Scalar: mean entropy of the router's distribution, in nats."""

    aux_loss: Tensor
    """Scalar, unscaled, 1.0 for perfect balance; per sequence with 'seq_aux_loss'. It carries a
    gradient, as `z_loss` does; all other tensors are detached."""

    z_loss: Tensor
    """Scalar, unscaled: mean of logsumexp(logits)^2."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MoEOutput:
    """The result of a forward pass. All losses but `router_loss` and `loss` are unscaled."""

    logits: Tensor
    """[batch, seq, vocab]: scores of the next token at each position."""

    routing: tuple[RoutingInfo, ...]
    """One entry for each MoE layer, first layer first; empty for a dense model."""

    aux_loss: Tensor
    """Scalar: load balancing loss, mean over the MoE layers; 1.0 is perfect balance."""

    z_loss: Tensor
    """Scalar: router z-loss, mean over the MoE layers."""

    router_loss: Tensor
    """Scalar, what training adds to the language model's loss: `aux_loss` and `z_loss` of each
    layer times their coefficients, summed over layers (not averaged), as Megatron does."""

    lm_loss: Tensor | None = None
    """Scalar: mean cross-entropy of the next token, in nats; None without labels."""

    loss: Tensor | None = None
    """Scalar: `lm_loss + router_loss`, to call backward on; None without labels. Perplexity is
    exp of `lm_loss`, not of this."""

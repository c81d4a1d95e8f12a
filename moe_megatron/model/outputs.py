"""What a forward pass returns: logits, losses and every routing decision.

These are plain records; `moe_layer` and `language_model` compute them.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingInfo:
    """The decisions of one MoE layer's router. Padding has no experts and is not counted.

    With an expert parallel group, it covers the tokens of this process.
    """

    layer: int
    """Global layer number, from 1."""

    indices: Tensor
    """int64 [batch, seq, top_k]: experts of each token, best first; -1 for padding, and for slots
    left free by a router that varies the number of experts per token."""

    weights: Tensor
    """[batch, seq, top_k]: combine weights; 0 for dropped assignments and padding."""

    scores: Tensor
    """float32 [batch, seq, experts]: router distribution; rows sum to 1, or are 0 for padding."""

    tokens_per_expert: Tensor
    """int64 [experts]: assignments that reached each expert."""

    dropped: Tensor
    """int64 scalar: assignments dropped by full experts."""

    entropy: Tensor
    """Scalar: mean over tokens of -sum_e p_e ln p_e, in nats."""

    aux_loss: Tensor
    """Scalar, unscaled: load balancing loss, 1.0 for perfect balance; computed per sequence with
    "seq_aux_loss". Only this, `z_loss` and `own_loss` carry gradients; all other tensors are
    detached."""

    z_loss: Tensor
    """Scalar, unscaled: mean over tokens of logsumexp(logits)^2."""

    own_loss: Tensor | None = None
    """Scalar, with its coefficient: the loss of a router that has one of its own."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MoEOutput:
    """The result of a forward pass. All losses but `router_loss` and `loss` are unscaled."""

    logits: Tensor
    """[batch, seq, vocab]: logits of the next token at each position."""

    routing: tuple[RoutingInfo, ...]
    """One entry for each MoE layer, first layer first; empty for a dense model."""

    aux_loss: Tensor
    """Scalar: load balancing loss, mean over the MoE layers; 1.0 is perfect balance."""

    z_loss: Tensor
    """Scalar: router z-loss, mean over the MoE layers."""

    router_loss: Tensor
    """Scalar: sum over layers (not the mean), as in Megatron, of aux_loss_coef * aux_loss +
    z_loss_coef * z_loss + own_loss. Training adds it to the loss of the language model."""

    lm_loss: Tensor | None = None
    """Scalar: mean cross-entropy of the next token, in nats; None without labels."""

    loss: Tensor | None = None
    """Scalar: `lm_loss + router_loss`, the loss to call backward on; None without labels.
    Perplexity is exp(lm_loss), not exp(loss)."""

"""What a forward pass returns: logits, losses and every routing decision.

It is a plain record; `language_model` computes it.
"""

from dataclasses import dataclass

from torch import Tensor

from moe_megatron.routing import RoutingInfo

__all__ = ["MoEOutput", "RoutingInfo"]


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

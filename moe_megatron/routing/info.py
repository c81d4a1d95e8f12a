"""`RoutingInfo`: what a router decided for a batch with padding, in the shape of the batch.

Routers see the tokens that count, one after the other; here these are put back in their places, and
the losses of the layer are computed, without coefficients.
"""

from dataclasses import dataclass

from torch import Tensor

from moe_megatron.routing.bound import BoundRouter
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.losses import (
    load_balancing_loss,
    router_entropy,
    sequence_load_balancing_loss,
    z_loss,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RoutingInfo:
    """The decisions of one MoE layer's router. Padding has no experts and is not counted.

    With an expert parallel group, it covers the tokens of this process.
    """

    layer: int
    """Global layer number, from 1."""

    indices: Tensor
    """int64 [batch, seq, slots]: experts of each token, best first; -1 for padding, and for slots
    left free by a router that varies the number of experts per token."""

    weights: Tensor
    """[batch, seq, slots]: combine weights; 0 for dropped assignments and padding."""

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


def describe(
    route: BoundRouter,
    logits_TE: Tensor,
    routing: Routing,
    valid: Tensor,
    *,
    layer: int = 1,
    of_sequences: bool = False,
) -> RoutingInfo:
    """What a router decided, and its losses.

    Args:
        route: The router.
        logits_TE: Output of the gate, of the tokens that count.
        routing: Their experts.
        valid: bool [batch, seq], True for the tokens that count, T of them.
        layer: Number of the layer, from 1.
        of_sequences: Whether the load balancing loss is computed of each sequence.
    """
    scores_TE = route.distribution(logits_TE)
    chosen_TE = route.balancing_map(scores_TE.detach(), routing)
    if of_sequences:
        sequence_T = valid.nonzero()[:, 0]
        aux_loss = sequence_load_balancing_loss(
            scores_TE, chosen_TE, route.top_k, sequence_T, len(valid)
        )
    else:
        aux_loss = load_balancing_loss(scores_TE, chosen_TE, route.top_k)
    return RoutingInfo(
        layer=layer,
        indices=in_places(routing.indices.masked_fill(~routing.assigned, -1), valid, padding=-1),
        weights=in_places(routing.weights.detach(), valid),
        scores=in_places(scores_TE.detach(), valid),
        tokens_per_expert=routing.tokens_per_expert,
        dropped=(routing.assigned & ~routing.kept).sum(),
        entropy=router_entropy(scores_TE.detach()),
        aux_loss=aux_loss,
        z_loss=z_loss(logits_TE),
        own_loss=routing.loss,
    )


def in_places(rows: Tensor, valid: Tensor, padding: int = 0) -> Tensor:
    """Put the rows of valid tokens, [T, width], back in place: [batch, seq, width]."""
    spread = rows.new_full((*valid.shape, rows.shape[1]), padding)
    return spread.masked_scatter(valid.unsqueeze(-1), rows)

"""Experts bound to domains of the data: each source of texts has a group of its own."""

import torch
from torch import Tensor

from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import route_top_k


@register_router("specialised")
def route_specialised(
    logits_TE: Tensor, *, top_k: int, domain_ids: Tensor, domains: int = 2, shared: int = 0
) -> Routing:
    """Tokens of domain d choose among the experts of group d and the shared ones, as top_k does.

    The last `shared` experts belong to all; the others are divided equally among the domains, side
    by side. A token whose domain is not known (-1) chooses among all. DEMix layers (Gururangan et
    al., arXiv:2108.05036) are the case of one expert a domain.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        domain_ids: int64 [T], the number of the source of each token, or -1.
        domains: Number of domains, which is that of the sources of the data.
        shared: Experts that every token may choose.

    Raises:
        ConfigError: The domains do not divide the experts, or a token would find too few.
    """
    own, rest = divmod(logits_TE.shape[-1] - shared, domains)
    if rest or own < 1 or own + shared < top_k:
        raise ConfigError(
            f"moe.router.domains ({domains}) must divide the experts that are not shared "
            f"({logits_TE.shape[-1]} - {shared}), and leave a token at least top_k ({top_k})."
        )
    experts_E = torch.arange(logits_TE.shape[-1], device=logits_TE.device)
    of_others_TE = experts_E // own != domain_ids.unsqueeze(-1)
    closed_TE = of_others_TE & (experts_E < domains * own) & (domain_ids >= 0).unsqueeze(-1)
    return route_top_k(logits_TE.masked_fill(closed_TE, float("-inf")), top_k=top_k)

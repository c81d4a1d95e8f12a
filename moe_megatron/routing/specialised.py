"""Experts bound to domains of the data: each source of texts has a group of its own."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from moe_megatron.config import MoEConfig, Within
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import route_top_k


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialisedOptions:
    """How experts are divided among domains.

    Raises:
        ConfigError: A number is out of range.
    """

    SECTION: ClassVar[str] = "moe.router"

    domains: Annotated[int, Within(least=1)] = setting(2)
    """Number of domains, which is that of the sources of the data."""

    shared: Annotated[int, Within(least=0)] = setting(0)
    """Experts that every token may choose."""

    def __post_init__(self) -> None:
        conform(self)

    def check(self, moe: MoEConfig) -> None:
        """Check that the domains divide the experts that are not shared.

        Raises:
            ConfigError: They do not, or a token would find too few.
        """
        _experts_of_each(self.domains, self.shared, moe.num_experts or 0, moe.top_k)


def _experts_of_each(domains: int, shared: int, num_experts: int, top_k: int) -> int:
    own, rest = divmod(num_experts - shared, domains)
    if rest or own < 1 or own + shared < top_k:
        raise ConfigError(
            f"moe.router.domains ({domains}) must divide the experts that are not shared "
            f"({num_experts} - {shared}), and leave a token at least top_k ({top_k})."
        )
    return own


@register_router("specialised", options=SpecialisedOptions)
def route_specialised(
    logits_TE: Tensor, *, top_k: int, domain_ids: Tensor, domains: int = 2, shared: int = 0
) -> Routing:
    """Tokens of domain d choose among the experts of group d and the shared ones, as top_k does.

    The last `shared` experts belong to all; the others are divided equally among the domains, side
    by side. A token whose domain is not known (-1), or is none of these, chooses among all. With
    top_k 1 the weight is the softmax over all open experts. DEMix layers (Gururangan et al.,
    arXiv:2108.05036) are the case of one expert a domain, whose weight is then 1.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        domain_ids: int64 [T], the number of the source of each token, or -1.
        domains: See `SpecialisedOptions`, as for the next.
        shared: Experts that every token may choose.

    Raises:
        ConfigError: The domains do not divide the experts, or a token would find too few.
    """
    own = _experts_of_each(domains, shared, logits_TE.shape[-1], top_k)
    experts_E = torch.arange(logits_TE.shape[-1], device=logits_TE.device)
    of_others_TE = experts_E // own != domain_ids.unsqueeze(-1)
    known_T = (domain_ids >= 0) & (domain_ids < domains)
    closed_TE = of_others_TE & (experts_E < domains * own) & known_T.unsqueeze(-1)
    open_TE = logits_TE.masked_fill(closed_TE, float("-inf"))
    return route_top_k(open_TE, top_k=top_k, pre_softmax=top_k == 1)

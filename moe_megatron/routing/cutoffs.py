"""Cutoffs: for each expert, the probability that its part of all tokens exceeds.

Experts that choose tokens need other tokens to do so. A cutoff that was learned from earlier
batches does not: a token goes to the experts whose cutoffs it exceeds, whatever else is in the
batch. Expert choice uses cutoffs once training is over, expert threshold always. Shapes: T tokens,
E experts.
"""

import math

import torch
from torch import Tensor

from moe_megatron.routing.decision import Routing
from moe_megatron.routing.histogram import Histogram
from moe_megatron.routing.state import RouterState, State

_LOG_PROBABILITIES = Histogram(low=-16.0, high=0.0)


def learned_cutoffs(log_probs_TE: Tensor, state: State) -> Tensor:
    """Log p of each expert's cutoff, [E]; an even share, 1 / E, before any step was made."""
    even = -math.log(log_probs_TE.shape[1])
    return torch.where(state["steps"] > 0, state["cutoff"], even)


def batch_cutoffs(log_probs_TE: Tensor, top_k: float, padding_T: Tensor | None) -> Tensor:
    """Log p of the last token that each expert chooses of this batch, [E]."""
    if padding_T is not None:
        log_probs_TE = log_probs_TE[~padding_T]
    num_tokens, num_experts = log_probs_TE.shape
    chosen = min(num_tokens, math.ceil(num_tokens * top_k / num_experts))
    return log_probs_TE.detach().topk(chosen, dim=0).values[-1]


def route_above(
    cutoff_E: Tensor,
    log_probs_TE: Tensor,
    padding_T: Tensor | None,
    *,
    training: bool,
    dtype: torch.dtype,
) -> Routing:
    """Send each token to the experts whose cutoffs it reaches, with the weight p.

    Args:
        cutoff_E: Log p of the cutoffs.
        log_probs_TE: Log p of the tokens.
        padding_T: bool, True for tokens that go nowhere and do not count.
        training: Whether cutoffs learn from these tokens.
        dtype: Of the weights.
    """
    map_TE = log_probs_TE.detach() >= cutoff_E
    if padding_T is not None:
        map_TE = map_TE & ~padding_T.unsqueeze(-1)
    routing = Routing.of_map(log_probs_TE.exp().to(dtype), map_TE)
    if not training:
        return routing
    return routing.observing(histogram=_LOG_PROBABILITIES.counts(log_probs_TE, padding_T))


def _updated(
    state: State, sums: State, *, top_k: int, decay: float = 0.99, **_: object
) -> dict[str, Tensor]:
    """Cutoff <- decay * cutoff + (1 - decay) * quantile of this step, which is the first cutoff."""
    counts_EB = sums["histogram"]
    now_E = _LOG_PROBABILITIES.quantile(counts_EB, 1 - top_k / len(counts_EB))
    old = torch.where(state["steps"] > 0, decay, 0.0)
    return {"cutoff": old * state["cutoff"] + (1 - old) * now_E, "steps": state["steps"] + 1}


CUTOFFS = RouterState(
    first=lambda num_experts: {"cutoff": torch.zeros(num_experts), "steps": torch.zeros(1)},
    sums=lambda num_experts: {"histogram": _LOG_PROBABILITIES.empty(num_experts)},
    updated=_updated,
)
"""State of routers with cutoffs: `cutoff`, log p [E], and `steps`, their number [1]."""

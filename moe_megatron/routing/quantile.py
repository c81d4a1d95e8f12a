"""Quantile balancing: the bias with which every expert would have had an equal part of a batch."""

from typing import Annotated

import torch
from torch import Tensor

from moe_megatron.config import Within
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.histogram import Histogram
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.state import RouterState, State
from moe_megatron.routing.top_k import check_top_k, route_biased

_BINS = 1024


def _gaps(bias_E: Tensor) -> Histogram:
    """Bins for what a score lacks: scores are in [0, 1], so it is within 1 of the biases."""
    return Histogram(low=bias_E.min() - 1, high=bias_E.max() + 1, bins=_BINS)


def _updated(
    state: State, sums: State, *, top_k: int, ema: float, **_: object
) -> dict[str, Tensor]:
    """b_e <- quantile of the gaps of expert e at top_k / E, less the mean of all experts."""
    gaps_EB = sums["gaps"]
    now_E = _gaps(state["bias"]).quantile(gaps_EB, top_k / len(gaps_EB))
    new_E = ema * state["bias"] + (1 - ema) * now_E
    return {"bias": new_E - new_E.mean()}


@register_router(
    "quantile",
    state=RouterState(
        first=lambda num_experts: {"bias": torch.zeros(num_experts)},
        sums=lambda num_experts: {"gaps": torch.zeros(num_experts, _BINS)},
        updated=_updated,
    ),
)
def route_quantile(
    logits_TE: Tensor,
    *,
    top_k: int,
    state: State,
    padding: Tensor | None,
    ema: Annotated[float, Within(least=0, below=1)] = 0.0,
) -> Routing:
    """Choose the largest s + b; weights are s / sum of the chosen s, s = sigmoid.

    A token's gap to expert e is the score s_e + b_e that it would have needed to be chosen, less
    s_e. With a bias that top_k / E of an expert's gaps are below, it would have been chosen by just
    its part of the tokens; that becomes the bias of the next step (quantile balancing; the solution
    of one expert at a time of the assignment problem in arXiv:2502.15451). At inference tokens are
    routed as in training, by the last bias.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        state: `bias`, [E].
        padding: bool [T], or None.
        ema: Share of the old bias that is kept.

    Raises:
        ConfigError: top_k is not in 1..E.
    """
    num_experts = logits_TE.shape[-1]
    check_top_k(top_k, num_experts)
    scores_TE, bias_E = torch.sigmoid(logits_TE.float()), state["bias"]
    routing = route_biased(scores_TE, bias_E, top_k, logits_TE.dtype)
    runner_up = min(top_k + 1, num_experts)
    needed_T1 = (scores_TE + bias_E).topk(runner_up, dim=-1).values[:, -1:]
    return routing.observing(gaps=_gaps(bias_E).counts(needed_T1 - scores_TE, padding))

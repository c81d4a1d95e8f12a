"""Of a model that was adapted to a task: `top_k`, conditioned by the task's embedding.

    logits = W x + U (e * V x)

e [D] is learned and begins with zeros, with which this is `top_k`; U and V are fixed. For a fixed
task it is `top_k` with the matrix W + U diag(e) V. It does not know which task that is.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor
from torch.nn import functional

from moe_megatron.config import Within
from moe_megatron.config.fields import setting
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.gate import Gate, Parameter
from moe_megatron.routing.registry import register_router
from moe_megatron.routing.top_k import TopKOptions, route_top_k, top_k_distribution

NAME = "task_conditioned"
EMBEDDING, DOWN, UP = "task_embedding", "down", "up"
"""The tensors of the gate beside its matrix: e, V and U."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRouterOptions(TopKOptions):
    """Those of `top_k`, and the size of an embedding.

    Raises:
        ConfigError: A value is out of range.
    """

    width: Annotated[int, Within(least=1)] = setting(16)
    """Numbers of a task's embedding."""


def _conditioned(
    hidden_TH: Tensor, *, weight: Tensor, task_embedding: Tensor, down: Tensor, up: Tensor
) -> Tensor:
    delta_TE = functional.linear(functional.linear(hidden_TH, down) * task_embedding, up)
    return functional.linear(hidden_TH, weight) + delta_TE


def _tensors(num_experts: int, hidden_size: int, *, width: int) -> dict[str, Parameter]:
    return {
        "weight": Parameter((num_experts, hidden_size)),
        EMBEDDING: Parameter((width,), first=0.0),
        DOWN: Parameter((width, hidden_size)),
        UP: Parameter((num_experts, width)),
    }


@register_router(
    NAME,
    options=TaskRouterOptions,
    distribution=top_k_distribution,
    gate=Gate(_conditioned, _tensors),
)
def route_conditioned(  # noqa: PLR0913  # the options of `top_k`, and one more
    logits_TE: Tensor,
    *,
    top_k: int,
    width: int = 16,
    score_function: str = "softmax",
    pre_softmax: bool = False,
    expert_groups: int | None = None,
    group_top_k: int | None = None,
    scaling: float | None = None,
    expert_bias: Tensor | None = None,
) -> Routing:
    """Choose as `top_k` does, by logits that the task has changed.

    Args:
        logits_TE: Output of the gate.
        top_k: Experts for each token.
        width: See `TaskRouterOptions`.
        score_function: As in `route_top_k`, also for the next ones.
        pre_softmax: See there.
        expert_groups: See there.
        group_top_k: See there.
        scaling: See there.
        expert_bias: See there.

    Raises:
        ConfigError: As `route_top_k`.
    """
    return route_top_k(
        logits_TE,
        top_k=top_k,
        score_function=score_function,
        pre_softmax=pre_softmax,
        expert_groups=expert_groups,
        group_top_k=group_top_k,
        scaling=scaling,
        expert_bias=expert_bias,
    )


def folded(weight: Tensor, embedding: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """The matrix of the router for one task, W + U diag(e) V, [E, H]."""
    return weight + (up * embedding) @ down

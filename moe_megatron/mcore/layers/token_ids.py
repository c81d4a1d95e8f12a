"""The token ids of the micro-batch that is computed now, for routers that look at them.

Megatron gives layers hidden states alone. The forward step leaves the ids here before it calls the
model; a layer finds those of its own rows. Layers for multi-token prediction are given later tokens
of the sequence, one more with each layer, and find the ids of those.

Stages that compute a micro-batch again after they have
begun another one would find the wrong ids: `check_token_ids` refuses such runs.
"""

import torch
from megatron.core import mpu
from megatron.core.transformer.multi_token_prediction import roll_tensor
from torch import Tensor

from moe_megatron.config import RunConfig
from moe_megatron.errors import ConfigError
from moe_megatron.routing import bind

_current: Tensor | None = None


def show_token_ids(token_ids: Tensor | None) -> None:
    """Leave the ids of a micro-batch, [batch, sequence], as far as this context rank has them."""
    global _current
    _current = token_ids


def token_ids_here(*, sequence_parallel: bool, ahead: int = 0) -> Tensor:
    """The ids of the rows of a layer, int64 [T]: sequence first, as Megatron has them.

    Args:
        sequence_parallel: Whether the ranks of a tensor parallel group share a sequence.
        ahead: How many tokens later than its position a row stands for; 0 stands at the end.
    """
    assert _current is not None, "every stage reads samples for a router that looks at token ids"
    ids = _current
    for _ in range(ahead):  # as the layers themselves do it
        group = mpu.get_context_parallel_group()
        ids, _sum = roll_tensor(ids, shifts=-1, dims=-1, cp_group=group)
    rows = ids.t()
    if sequence_parallel:
        size, rank = (
            mpu.get_tensor_model_parallel_world_size(),
            mpu.get_tensor_model_parallel_rank(),
        )
        rows = torch.chunk(rows, size)[rank]
    return rows.reshape(-1)


def uses_token_ids(config: RunConfig) -> bool:
    """Whether the router of a run looks at token ids."""
    return config.moe.num_experts is not None and bind(config.moe).uses("token_ids")


def check_token_ids(config: RunConfig) -> None:
    """Check that layers find the right ids.

    Raises:
        ConfigError: They would not.
    """
    if not uses_token_ids(config):
        return
    name = config.moe.router.name
    if config.training.recompute != "none" and config.parallel.pipeline_parallel_size > 1:
        raise ConfigError(
            f"the router '{name}' looks at token ids, which are gone when a pipeline stage "
            "computes a micro-batch again; set training.recompute to none, or "
            "pipeline_parallel_size to 1."
        )

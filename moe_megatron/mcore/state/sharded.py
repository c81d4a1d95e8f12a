"""Which part of which tensor of the whole model each tensor of a rank is, in Megatron's words."""

from collections.abc import Iterator
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories


def sharded_tensors(model: Any) -> Iterator[ShardedTensor]:
    """The tensors that checkpoints hold of a model chunk, fused ones in their parts.

    Args:
        model: One of Megatron's model chunks, not wrapped.
    """
    state = model.sharded_state_dict()
    apply_factories(state)
    return (it for it in nested_values(state) if isinstance(it, ShardedTensor))

"""Names the optimizer states of a run that freezes parameters, layer by layer and expert by expert.

Megatron stores the states of a parameter of all layers, and of all experts, as one tensor. A run
that trains some of them would leave holes in it, which torch's writer refuses. Here each layer and
expert has a tensor of its own, named by its numbers: `KEY@1.0` is expert 0 of the layer at index 1.
Weights keep their names: all of them are saved.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import optimizer as states
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.optimizer import optimizer as optimizers
from torch.distributed.checkpoint.filesystem import FileSystemReader

from moe_megatron.mcore.replaced import replaced

_MAKE = "make_sharded_optimizer_tensor"


def apart(tensor: ShardedTensor) -> ShardedTensor:
    """A part of a stacked tensor, as a part of the tensor of its own layer and expert."""
    leading = tensor.prepend_axis_num
    if not leading:
        return tensor
    numbers = ".".join(map(str, tensor.global_offset[:leading]))
    pieces = tensor.axis_fragmentations
    return replace(
        tensor,
        key=f"{tensor.key}@{numbers}",
        global_shape=tensor.global_shape[leading:],
        global_offset=tensor.global_offset[leading:],
        axis_fragmentations=None if pieces is None else pieces[leading:],
        prepend_axis_num=0,
    )


@contextmanager
def states_apart() -> Iterator[None]:
    """Let optimizers that are not distributed save and load their states so, meanwhile."""
    original = getattr(states, _MAKE)

    def make(*args: Any, **kwargs: Any) -> Any:
        return _apart(original(*args, **kwargs))

    with replaced(states, _MAKE, make), replaced(optimizers, _MAKE, make):
        yield


@contextmanager
def lacking_states() -> Iterator[None]:
    """Load the states that a checkpoint has, and leave out those that it lacks, meanwhile."""
    original = dist_checkpointing.load

    def load(state: Any, folder: Any, *args: Any, **kwargs: Any) -> Any:
        stored = FileSystemReader(folder).read_metadata().state_dict_metadata
        _leave_out(state, stored.keys())
        return original(state, folder, *args, **kwargs)

    with replaced(dist_checkpointing, "load", load):
        yield


def _leave_out(state: Any, stored: Collection[str]) -> None:
    """Put None for parameters whose states are not stored; `optimizer_shards` reads it."""
    if not isinstance(state, dict):
        return
    for number, part in list(state.items()):
        if isinstance(part, dict) and "in_memory" in part:
            keys = {tensor.key for tensors in part["saved"].values() for tensor in tensors}
            if not keys.issubset(stored):
                state[number] = LocalNonpersistentObject(None)
        else:
            _leave_out(part, stored)


def _apart(part: Any) -> Any:
    if isinstance(part, ShardedTensorFactory):
        build = part.build_fn

        def build_apart(*args: Any) -> Any:
            return dict_list_map_inplace(apart, build(*args))

        return replace(part, build_fn=build_apart)
    return apart(part)

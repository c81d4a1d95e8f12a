"""Saves and loads the distributed optimizer from where its numbers are, without gathering them.

Megatron's fully reshardable format stores each state of each parameter as a tensor of the
parameter's shape. To write it, Megatron 0.19 gathers all shards on all ranks and copies them; to
read it, every rank reads whole parameters. Here each rank writes, and reads into, views of the
shards that it owns, as boxes of those tensors. Keys, shapes and numbers in the checkpoint are the
same, so Megatron itself reads what this writes, and the reverse.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from moe_megatron.mcore.state.boxes import boxes_of_range

Rename = Callable[[ShardedTensor], ShardedTensor]

_LARGEST = 2**24
"""Elements of a box: a reader needs memory for one stored box at a time."""
_SAVE = "sharded_param_state_fully_reshardable"
_LOAD = "load_parameter_state_from_fully_reshardable"


@contextmanager
def saving_own_shards(rename: Rename = lambda tensor: tensor) -> Iterator[None]:
    """Let ranks save and load the parts of the optimizer state that they own, meanwhile.

    Args:
        rename: From the tensor of a parameter's state to the one that is stored.
    """
    originals = {name: getattr(DistributedOptimizer, name) for name in (_SAVE, _LOAD)}

    def sharded(self: Any, model: Any, is_loading: bool = False, metadata: Any = None) -> Any:
        if _has_own_format(self):
            return originals[_SAVE](self, model, is_loading, metadata)
        return _sharded_state(self, model, rename)

    def load(self: Any, state: dict[Any, Any]) -> None:
        if _has_own_format(self):
            originals[_LOAD](self, state)
        else:
            _fill(state)
            _begin_anew(self, state)

    setattr(DistributedOptimizer, _SAVE, sharded)
    setattr(DistributedOptimizer, _LOAD, load)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(DistributedOptimizer, name, original)


def _has_own_format(optimizer: Any) -> bool:
    """Whether the optimizer keeps states elsewhere, or not as the checkpoint stores them."""
    unscaled = optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
    return unscaled or isinstance(optimizer.optimizer, HybridDeviceOptimizer)


def _sharded_state(optimizer: Any, model: Any, rename: Rename) -> dict[int, Any]:
    """The state of each parameter of which this rank owns a part, as tensors of the checkpoint."""
    sharded, _ = extract_sharded_tensors_and_factories(model)
    saved_as = {id(item.data): item for item in nested_values(sharded)}
    state: dict[int, Any] = {}
    for parameter, owned in _owned_ranges(optimizer):
        shards = optimizer._get_main_param_and_optimizer_states(parameter)
        parts: dict[str, Any] = {"in_memory": {}, "saved": {}}
        for name in ("param", *optimizer.optimizer_state_keys):
            whole = _state_tensors(saved_as[id(parameter)], name, shards[name].dtype, optimizer)
            shard = shards[name].detach().view(-1)
            tensors = [box for it in whole for box in _boxes_of(rename(it), shard, owned)]
            parts["saved"][name] = tensors
            parts["in_memory"][name] = LocalNonpersistentObject([it.data for it in tensors])
        state[len(state)] = parts
    return state


def _owned_ranges(optimizer: Any) -> Iterator[tuple[Tensor, range]]:
    """Parameters and the range of the flattened parameter that this rank owns."""
    for by_type in optimizer.gbuf_ranges:
        for buckets in by_type.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    owned = range(ranges["param"].start, ranges["param"].end)
                    if owned:
                        yield parameter, owned


def _state_tensors(saved: Any, name: str, dtype: torch.dtype, optimizer: Any) -> list[Any]:
    """The tensors of the checkpoint that one state of a parameter is, without memory."""
    # The first two numbers say which pipeline and tensor replica this is; data replicas have none.
    replica = (*saved.replica_id[:2], optimizer.distributed_optimizer_instance_id)
    whole = torch.empty(saved.data.shape, dtype=dtype, device="meta")
    changes = {"key": f"optimizer.state.{name}.{saved.key}", "data": whole, "replica_id": replica}
    if isinstance(saved, ShardedTensorFactory):
        tensors = list(nested_values(replace(saved, **changes).build()))
    else:
        tensors = [replace(saved, **changes, dtype=dtype)]
    for it in tensors:
        assert it.data._base is whole or it.data is whole, "a factory copies the parameter"
    return tensors


def _boxes_of(tensor: ShardedTensor, shard: Tensor, owned: range) -> Iterator[Any]:
    """The boxes of a tensor that make up this rank's shard of the parameter, as views of it."""
    part = tensor.data
    leading = tensor.prepend_axis_num
    strides = part.stride()
    for box in boxes_of_range(part.shape, strides, part.storage_offset(), owned, _LARGEST):
        data = shard.as_strided(
            box.sizes, strides, shard.storage_offset() + box.position - owned.start
        )
        corner = (*(0 for _ in range(leading)), *box.corner)
        yield replace(
            tensor,
            data=data.view((*(1 for _ in range(leading)), *box.sizes)),
            local_shape=(*(1 for _ in range(leading)), *box.sizes),
            global_offset=tuple(a + b for a, b in zip(tensor.global_offset, corner, strict=True)),
            axis_fragmentations=None,  # boxes of different sizes form no grid
            prepend_axis_num=0,
        )


def _fill(state: dict[Any, Any]) -> None:
    """Copy what was loaded, where the loader has not read it into the optimizer's own memory."""
    for parts in filter(None, state.values()):
        for name, in_memory in parts["in_memory"].items():
            for own, loaded in zip(in_memory, parts["saved"][name], strict=True):
                if own.data_ptr() != loaded.data_ptr():
                    own.copy_(loaded)


@torch.no_grad()
def _begin_anew(optimizer: Any, state: dict[Any, Any]) -> None:
    """Give parameters that were not trained when the checkpoint was saved a state of zeros."""
    for number, (parameter, owned) in enumerate(_owned_ranges(optimizer)):
        if state.get(number) is not None:
            continue
        shards = optimizer._get_main_param_and_optimizer_states(parameter)
        shards["param"].copy_(parameter.detach().view(-1)[owned.start : owned.stop])
        for name in optimizer.optimizer_state_keys:
            shards[name].zero_()

"""How adapters begin: on weights that a checkpoint without them holds, or on those of the model.

A checkpoint either has all tensors of the adapters or none (`config/loading.py`). If none, they
stay as they were drawn; the norms of DoRA are those of the weights, once these are there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from megatron.core.utils import unwrap_model
from megatron.training import training as loop
from torch.distributed.checkpoint.filesystem import FileSystemReader

from moe_megatron.config.adapter import is_of_adapter
from moe_megatron.mcore import world
from moe_megatron.mcore.replaced import replaced
from moe_megatron.mcore.tuning.adapters.adapter_receipt import count_adapters
from moe_megatron.mcore.tuning.adapters.attach import start_magnitudes


def begin(chunks: list[Any], say: Callable[[str], None]) -> list[Any]:
    """Begin on the weights as they are, and say what is adapted; every rank must call it.

    Args:
        chunks: Megatron's model chunks of this rank, not wrapped.
        say: Called on rank 0 with a line.
    """
    start_magnitudes(chunks, anew=False)
    count = count_adapters(chunks)
    if world.rank() == 0:
        say(str(count))
    return chunks


@contextmanager
def adapters_on_base() -> Iterator[None]:
    """Let a run with adapters load a checkpoint without them, meanwhile."""
    read, whole = dist_checkpointing.load, loop.load_checkpoint
    lacking = False

    def load(state: Any, folder: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal lacking
        stored = FileSystemReader(folder).read_metadata().state_dict_metadata
        lacking = not any(map(is_of_adapter, stored))
        if lacking:
            state = {name: _kept(part) for name, part in state.items()}
        return read(state, folder, *args, **kwargs)

    def load_checkpoint(model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal lacking
        lacking = False
        result = whole(model, optimizer, *args, **kwargs)
        if lacking:
            start_magnitudes(unwrap_model(model), anew=True)
            if optimizer is not None:
                optimizer.reload_model_params()
        return result

    with (
        replaced(dist_checkpointing, "load", load),
        replaced(loop, "load_checkpoint", load_checkpoint),
    ):
        yield


def _kept(part: Any) -> Any:
    """The state of a model chunk, in which adapters stay as they are."""
    if not isinstance(part, dict):
        return part
    return {
        name: LocalNonpersistentObject(it.data.detach())
        if isinstance(it, ShardedTensor | ShardedTensorFactory) and is_of_adapter(it.key)
        else it
        for name, it in part.items()
    }

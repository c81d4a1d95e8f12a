"""Megatron's model of a run, built here, for the keys and shapes of its checkpoint."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist

import moe_megatron.mcore  # noqa: F401  # makes Megatron importable
from moe_megatron.config import RunConfig


@pytest.fixture
def megatron_model() -> Iterator[Callable[[RunConfig], Any]]:
    """A function that builds the model of a run, for one process; its weights are not set."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.training import training as loop

    from moe_megatron.mcore.state.layered import bare_model

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        with contextlib.redirect_stdout(io.StringIO()):
            yield bare_model
    finally:
        loop.destroy_global_state()
        dist.destroy_process_group()


@pytest.fixture
def sharded_tensors() -> Callable[[Any], list[Any]]:
    """A function that lists the tensors of a model as its checkpoint has them."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

    def tensors(model: Any) -> list[Any]:
        state = model.sharded_state_dict()
        apply_factories(state)
        return [value for value in nested_values(state) if isinstance(value, ShardedTensor)]

    return tensors

"""Megatron's model of a run, built here: its keys and shapes, and weights put where links say."""

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
    """A function that builds the model of a run, for one process."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.training import training as loop

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        with contextlib.redirect_stdout(io.StringIO()):
            yield _build
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


def _build(run: RunConfig) -> Any:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.models.base import compose_hooks
    from megatron.training.models.gpt import GPTModelBuilder

    from moe_megatron.mcore import specs
    from moe_megatron.mcore.arguments import MachineSettings, RunPaths, megatron_argv, parse

    machine = MachineSettings(
        backend="gloo",
        transformer_impl="local",
        precision="fp32",
        grouped_gemm=False,
        accumulation_fusion=False,
    )
    paths = RunPaths(
        data=(),
        validation=(),
        data_cache="",
        vocab_size=run.data.vocab_size,
        end_of_document=0,
        checkpoints=None,
        load=None,
    )
    argv = [*megatron_argv(run, machine, paths), "--make-vocab-size-divisible-by", "1"]
    model_config = gpt_config_from_args(parse(argv))
    specs.use_our_layers(model_config, run)
    model_config.vocab_size = run.data.vocab_size
    groups = ProcessGroupCollection.use_mpu_process_groups()
    model = GPTModelBuilder(model_config).build_model(groups, pre_process=True, post_process=True)
    return compose_hooks(model_config.pre_wrap_hooks)([model])[0]

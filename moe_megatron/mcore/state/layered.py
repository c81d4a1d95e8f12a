"""Megatron's model of a run in one CPU process, with the weights of one layer in memory at a time.

It is for inspecting checkpoints, not for training. Megatron's `sharded_state_dict` says which
tensors a layer needs, under which keys and with which offsets; the caller reads them. This module
knows neither files nor mapping tables.
"""

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.models.base import compose_hooks
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
from torch import Tensor, nn

from moe_megatron.config import CheckpointConfig, ParallelConfig, RunConfig
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.mcore import world
from moe_megatron.mcore.layers.specs import use_our_layers
from moe_megatron.mcore.loop.arguments import RunPaths, megatron_argv, parse
from moe_megatron.mcore.loop.cleanup import forget_run
from moe_megatron.mcore.loop.job import MachineSettings
from moe_megatron.mcore.state.sharded import sharded_tensors
from moe_megatron.platform.device import DEVICE_VARIABLE
from moe_megatron.platform.lazy_weights import load_while_running, make_room, weights_left_out

Read = Callable[[str, Sequence[int], Sequence[int]], Tensor]
"""`read(key, offsets, sizes)` returns a box (a rectangular part) of a saved tensor."""

Logits = Callable[[Tensor], Tensor]
"""Maps tokens, int64 [batch, sequence], to logits, float32 [batch, sequence, vocabulary]."""


@contextlib.contextmanager
def layered_model(config: RunConfig, read: Read, *, precision: str = "fp32") -> Iterator[Logits]:
    """The model of a run as a function, usable inside the context.

    In memory are the embedding, the final norm, the output projection and one layer at a time.
    Layers for multi-token prediction are left out: they do not affect the logits.

    Args:
        config: The run; its parallel sizes are ignored.
        read: Reads the checkpoint.
        precision: Precision of the computation, "fp32" or "bf16".

    Raises:
        BackendUnavailableError: This process already holds a Megatron run, or sees a GPU.
        ConfigError: Megatron refuses the model.
    """
    if torch.cuda.is_available():
        raise BackendUnavailableError(
            "checkpoints are compared on the CPU, but this process sees a GPU; set "
            f"{DEVICE_VARIABLE}=cpu before it starts."
        )
    if parallel_state.is_initialized():
        raise BackendUnavailableError(
            "this process already holds a Megatron run; compare checkpoints in another process."
        )
    with contextlib.ExitStack() as stack:
        if not dist.is_initialized():
            stack.callback(dist.destroy_process_group)
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        stack.callback(forget_run, world.process_groups())
        with _quiet():
            model = _build(_in_one_process(config), precision)
        _load(_with_layers(model, []), _outside(model), read)
        for layer in model.decoder.layers:
            load_while_running(layer, _loader(model, layer, read))
        yield lambda tokens: _logits(model, tokens)


def _in_one_process(config: RunConfig) -> RunConfig:
    model = replace(config.model, num_prediction_layers=0)
    return replace(config, model=model, parallel=ParallelConfig(), checkpoint=CheckpointConfig())


def bare_model(config: RunConfig, precision: str = "fp32") -> Any:
    """Megatron's model of a run in one CPU process, with the shapes of its checkpoints.

    The vocabulary is not padded, and weights are not initialized. Megatron's process groups must
    already exist; its global variables are set here.

    Args:
        config: The run; its parallel sizes must be 1.
        precision: "fp32" or "bf16".

    Raises:
        ConfigError: Megatron refuses the model.
    """
    model_config = _model_config(config, precision)
    process_groups = ProcessGroupCollection.use_mpu_process_groups()
    model = GPTModelBuilder(model_config).build_model(
        process_groups, pre_process=True, post_process=True
    )
    return compose_hooks(model_config.pre_wrap_hooks)([model])[0]


def _model_config(config: RunConfig, precision: str) -> GPTModelConfig:
    machine = MachineSettings(
        backend="gloo",
        transformer_impl="local",
        precision=precision,
        grouped_gemm=False,
        accumulation_fusion=False,
    )
    paths = RunPaths(
        data=(),
        validation=(),
        data_cache="",
        vocab_size=config.data.vocab_size,
        end_of_document=0,
        checkpoints=None,
        load=None,
    )
    argv = [*megatron_argv(config, machine, paths), "--no-initialization"]
    model_config = gpt_config_from_args(parse(argv))
    use_our_layers(model_config, config)
    model_config.vocab_size = config.data.vocab_size
    model_config.should_pad_vocab = False
    return model_config


def _build(config: RunConfig, precision: str) -> Any:
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    with weights_left_out():
        model = bare_model(config, precision)
    if precision == "bf16":
        for parameter in model.parameters():  # as Megatron trains; buffers keep their precision
            parameter.data = parameter.data.bfloat16()
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Megatron's output, which is about training and does not apply here."""
    logger = logging.getLogger("megatron")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _outside(model: Any) -> list[nn.Module]:
    """The modules that are not part of a layer."""
    modules = [model.embedding, model.output_layer, model.decoder.final_layernorm]
    return [module for module in modules if module is not None]


def _loader(model: Any, layer: nn.Module, read: Read) -> Callable[[], None]:
    return lambda: _load(_with_layers(model, [layer]), [layer], read)


def _with_layers(model: Any, layers: Sequence[nn.Module]) -> Any:
    """A shallow copy of the model with only the given layers; each knows its own number."""
    view, decoder = copy.copy(model), copy.copy(model.decoder)
    decoder._modules = {**decoder._modules, "layers": nn.ModuleList(layers)}
    view._modules = {**view._modules, "decoder": decoder}
    return view


def _load(model: Any, modules: Sequence[nn.Module], read: Read) -> None:
    """Read the tensors of the given modules of a model from the checkpoint."""
    for module in modules:
        make_room(module)
    storages = {
        tensor.untyped_storage().data_ptr()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    for tensor in sharded_tensors(model):
        if tensor.data.device.type == "meta":
            continue
        if tensor.data.untyped_storage().data_ptr() in storages:
            leading = (1,) * tensor.prepend_axis_num
            box = read(tensor.key, tensor.global_offset, (*leading, *tensor.local_shape))
            tensor.data.detach().copy_(box.reshape(tensor.local_shape))


def _logits(model: Any, tokens: Tensor) -> Tensor:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        logits: Tensor = model(tokens, positions, None)
    return logits.float()

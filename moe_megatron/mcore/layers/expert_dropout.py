"""Dropout inside routed experts, in training only: the "expert dropout" of Switch Transformers.

Megatron has dropout after attention and after the MLP, and none in experts. Switch (arXiv
2101.03961, section 2.2) drops inner features of experts, between activation and output projection,
at a higher rate than elsewhere. It does not know which experts there are or how they are computed:
any whose output projection is called `linear_fc2`.
"""

from typing import Any

from megatron.core.tensor_parallel.random import (
    get_cuda_rng_tracker,
    get_expert_parallel_rng_tracker_name,
)
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor, nn
from torch.nn import functional

from moe_megatron.errors import ConfigError


def add_expert_dropout(chunks: list[Any], rate: float) -> list[Any]:
    """Drop each inner feature of every routed expert with this probability.

    Args:
        chunks: The model chunks of a rank, before they are wrapped.
        rate: From 0 to below 1.

    Returns:
        The chunks.

    Raises:
        ConfigError: The experts are one fused operation, with no place for dropout.
    """
    for chunk in chunks:
        for layer in chunk.modules():
            if isinstance(layer, MoELayer):
                _drop_in(layer.experts, rate)
    return chunks


def _drop_in(experts: nn.Module, rate: float) -> None:
    if getattr(experts, "_with_fused_impl", False):
        raise ConfigError(
            f"moe.expert_dropout ({rate}) does not work with --use-transformer-engine-op-fuser, "
            "which computes experts as one operation; leave one of the two out."
        )

    def drop(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if not module.training:
            return arguments
        inner: Tensor = arguments[0]
        # Its own generator on each rank: others hold other experts, or other features of them.
        with get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name()):
            return (functional.dropout(inner, rate), *arguments[1:])

    for name, module in experts.named_modules():
        if name.rpartition(".")[2] == "linear_fc2":
            module.register_forward_pre_hook(drop)

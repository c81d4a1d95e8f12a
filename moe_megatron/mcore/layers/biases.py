"""Two biases that Megatron only has together with all others, or not at all.

That of the attention's output projection (Llama, OLMoE, Qwen3-MoE and others can have it), and that
of the output projection of the model (PhiMoE).
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes


def with_bias(linear: Callable[..., Any]) -> Callable[..., Any]:
    """The builder of a linear layer, which then always has a bias."""

    def build(*args: Any, **kwargs: Any) -> Any:
        return linear(*args, **{**kwargs, "bias": True})

    return build


def add_head_bias(chunks: list[Any]) -> list[Any]:
    """Give the output projection a bias, in the stage that has one; a hook before DDP wraps it.

    Args:
        chunks: Megatron's model chunks of this rank, not wrapped yet.
    """
    for chunk in chunks:
        if chunk.post_process:
            head = chunk.output_layer
            like = next(chunk.parameters())
            bias = torch.nn.Parameter(like.new_zeros(head.output_size_per_partition))
            set_tensor_model_parallel_attributes(bias, True, 0, 1)
            bias.allreduce = True  # type: ignore[attr-defined]  # as Megatron marks its own
            head.bias = bias
    return chunks

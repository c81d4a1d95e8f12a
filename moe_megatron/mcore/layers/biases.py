"""Two biases that Megatron has only together with all others, or not at all.

They are the bias of the attention's output projection (optional in Llama, OLMoE, Qwen3-MoE and
others) and the bias of the language model head (PhiMoE).
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes


def with_bias(linear: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the builder of a linear layer so that the layer always has a bias."""

    def build(*args: Any, **kwargs: Any) -> Any:
        return linear(*args, **{**kwargs, "bias": True})

    return build


def add_head_bias(chunks: list[Any]) -> list[Any]:
    """Give the output projection a bias, on the pipeline stage that holds it.

    Args:
        chunks: Megatron's model chunks of this rank, before DDP wraps them.
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

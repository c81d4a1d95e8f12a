"""Logits of a model that Megatron has spread over the ranks of a test's program."""

from typing import Any

import torch
import torch.distributed as dist

import moe_megatron.mcore  # noqa: F401  # makes Megatron importable


def parallel_logits(chunk: Any, tokens: torch.Tensor) -> torch.Tensor | None:
    """Run tokens through all pipeline stages; every rank calls it.

    Args:
        chunk: This rank's part of the model, wrapped or not.
        tokens: The same on every rank, int64 [batch, sequence]; the tensor parallel size divides
            the sequence.

    Returns:
        On the last pipeline stage [batch, sequence, padded vocabulary], on the others None.
    """
    from megatron.core import mpu  # an import sorter would put it above ours

    network = chunk
    while hasattr(network, "module"):
        network = network.module
    network.eval()
    tensor = mpu.get_tensor_model_parallel_world_size()
    if not mpu.is_pipeline_first_stage():
        # Sequence before batch, and of the sequence the part of this tensor parallel rank.
        width = network.config.hidden_size
        received = torch.empty(tokens.shape[1] // tensor, tokens.shape[0], width)
        dist.recv(received, mpu.get_pipeline_model_parallel_prev_rank())
        network.set_input_tensor(received)
    output = network(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None)
    network.train()
    if not mpu.is_pipeline_last_stage():
        dist.send(output.contiguous(), mpu.get_pipeline_model_parallel_next_rank())
        return None
    parts = [torch.empty_like(output) for _ in range(tensor)]
    dist.all_gather(parts, output.contiguous(), group=mpu.get_tensor_model_parallel_group())
    return torch.cat(parts, dim=-1)

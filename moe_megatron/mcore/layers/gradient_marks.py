"""What Megatron must know of parameters to sum their gradients, where 0.19 marks them otherwise.

- Biases of its row parallel layers are marked as known in parts by tensor parallel ranks with
  sequence parallelism, those of experts, too. It then sums over these ranks what expert data
  parallelism has summed before, and under expert parallelism the biases of different experts.
  Experts get their tokens from a dispatcher and know nothing of parts of sequences.
- Attention sinks, of which each tensor parallel rank has those of its heads, are not marked as
  split, so that the norm of the gradient counts the first rank's alone.
"""

from typing import Any

from megatron.core.transformer.moe.moe_layer import MoELayer


def mark_parameters(chunks: list[Any]) -> list[Any]:
    """Mark parameters as what they are.

    Args:
        chunks: Megatron's model chunks of this rank, before DDP wraps them; changed in place.
    """
    for module in (it for chunk in chunks for it in chunk.modules()):
        if isinstance(module, MoELayer):
            for parameter in module.experts.parameters():
                parameter.sequence_parallel = False
        sinks = module._parameters.get("softmax_offset")
        if sinks is not None:
            sinks.tensor_model_parallel = True
            sinks.partition_dim, sinks.partition_stride = 0, 1
    return chunks

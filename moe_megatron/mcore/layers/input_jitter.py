"""Noise on the input of a router, in training: the jitter of Switch (arXiv:2101.03961).

Megatron 0.19 draws it on each of the ranks that share a micro-batch from generators in the same
state, so that the first token of every rank gets the same noise. Here each draws that of the whole
micro-batch and takes its own rows, so that it is the noise of one process. It does not know when a
model trains. Ranks with other micro-batches draw the same numbers for them.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def jitter(
    hidden: Tensor, amount: float, *, tensor: dist.ProcessGroup | None, context: dist.ProcessGroup
) -> Tensor:
    """The hidden states times noise from [1 - amount, 1 + amount].

    Args:
        hidden: [sequence, batch, hidden] of this rank.
        amount: From 0 to below 1.
        tensor: The ranks that share its part of the sequences; None: they have all of it.
        context: The ranks that share the sequences, each with a piece from the front and one from
            the back.
    """
    parts = 1 if tensor is None else tensor.size()
    length, *rest = hidden.shape
    ends = torch.tensor([1.0 - amount, 1.0 + amount], dtype=hidden.dtype, device=hidden.device)
    uniform = torch.rand(
        length * parts * context.size(), *rest, dtype=hidden.dtype, device=hidden.device
    )
    noise = uniform * (ends[1] - ends[0]) + ends[0]
    if context.size() > 1:
        pieces = noise.chunk(2 * context.size())
        noise = torch.cat([pieces[context.rank()], pieces[2 * context.size() - 1 - context.rank()]])
    if tensor is not None:
        noise = noise.chunk(parts)[tensor.rank()]
    return hidden * noise

"""Which tokens a model would have chosen: the logits of the last stage against the labels.

Megatron's models give losses where they are given labels, and keep the logits to themselves. A hook
on the output layer looks at them, which each tensor parallel rank has for its part of the
vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor


class Answers:
    """Notes the choices of a model while it computes one micro-batch."""

    def __init__(self) -> None:
        self._chosen: Tensor | None = None

    @contextmanager
    def watched(self, model: torch.nn.Module) -> Iterator[None]:
        """Look at the logits of a model chunk, if it is the last one."""
        self._chosen = None
        if not get_attr_wrapped_model(model, "post_process"):
            yield
            return
        layer = get_attr_wrapped_model(model, "output_layer")
        handle = layer.register_forward_hook(self._look)
        try:
            yield
        finally:
            handle.remove()

    def _look(self, layer: Any, inputs: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        if logits is not None and logits.dim() == 3:  # not where it gives losses
            self._chosen = most_likely(logits.detach()).t()

    def correct(self, labels: Tensor) -> Tensor | None:
        """Whether each label was chosen, bool [batch, sequence]; None where that is not known."""
        if self._chosen is None or self._chosen.shape != labels.shape:
            return None
        return self._chosen == labels


def most_likely(logits: Tensor) -> Tensor:
    """The most likely token of the whole vocabulary, the first of equal ones; int64 [...].

    Args:
        logits: [..., V / tensor parallel ranks], those of this rank.
    """
    best: Tensor
    token: Tensor
    best, token = logits.float().max(dim=-1)
    size = mpu.get_tensor_model_parallel_world_size()
    if size == 1:
        return token
    group = mpu.get_tensor_model_parallel_group()
    token = token + mpu.get_tensor_model_parallel_rank() * logits.shape[-1]
    of_all = best.clone()
    dist.all_reduce(of_all, op=dist.ReduceOp.MAX, group=group)
    token = token.masked_fill(best < of_all, logits.shape[-1] * size)
    dist.all_reduce(token, op=dist.ReduceOp.MIN, group=group)
    return token

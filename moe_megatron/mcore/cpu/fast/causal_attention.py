"""Causal attention without the half of the scores that the mask throws away.

Queries are processed in blocks, each against the keys up to the end of the block only. One autograd
function keeps what the backward pass needs. It does not know where in a sequence the queries stand,
only that the last of them belongs to the last key.
"""

from itertools import pairwise
from typing import Any

import torch

_BLOCK = {torch.bfloat16: 128, torch.float32: 64}
"""Queries per block; measured to be fastest for sequences of 256."""


class CausalAttention(torch.autograd.Function):
    """softmax(scale * Q K^T + causal mask) V: each query attends up to its own position.

    There may be more keys than queries: those are the ones before the first query.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Map three [sequence, batch, heads, width] to [sequence, batch, heads * width].

        If the width of the values differs, the result has the width of the values.
        """
        length, batch = query.shape[:2]
        before = len(key) - length
        q, k, v = (_rows(x) for x in (query * scale, key, value))
        output = v.new_empty(len(v), length, v.shape[-1])
        all_probs = []
        size = _BLOCK.get(q.dtype, 64)
        future = torch.full((size, size), -torch.inf, dtype=q.dtype).triu_(1)
        for start, end in _blocks(length, size):
            seen = before + end
            scores = torch.bmm(q[:, start:end], k[:, :seen].transpose(1, 2))
            scores[:, :, before + start :] += future[: end - start, : end - start]
            probs = torch.softmax(scores, dim=-1)
            output[:, start:end] = torch.bmm(probs, v[:, :seen])
            all_probs.append(probs)
        ctx.save_for_backward(q, k, v, *all_probs)
        ctx.scale, ctx.batch, ctx.size = scale, batch, size
        return _columns(output, batch).reshape(length, batch, -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of query, key and value."""
        q, k, v, *all_probs = ctx.saved_tensors
        length = q.shape[1]
        before = k.shape[1] - length
        grad = _rows(grads[0].view(length, ctx.batch, -1, v.shape[-1]))
        d_q = torch.empty_like(q)
        d_k, d_v = (
            torch.zeros_like(k, dtype=torch.float32),
            torch.zeros_like(v, dtype=torch.float32),
        )
        for probs, (start, end) in zip(all_probs, _blocks(length, ctx.size), strict=True):
            seen, part = before + end, grad[:, start:end]
            d_v[:, :seen] += torch.bmm(probs.transpose(1, 2), part)
            d_probs = torch.bmm(part, v[:, :seen].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :seen])
            d_k[:, :seen] += torch.bmm(d_scores.transpose(1, 2), q[:, start:end])
        d_q.mul_(ctx.scale)
        d_query, d_key, d_value = (_columns(x, ctx.batch).to(q.dtype) for x in (d_q, d_k, d_v))
        return d_query, d_key, d_value, None


def _blocks(length: int, size: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, length, size), length]))


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[sequence, batch, heads, width] -> [batch * heads, sequence, width]."""
    length, batch, heads, width = x.shape
    return x.permute(1, 2, 0, 3).reshape(batch * heads, length, width)


def _columns(x: torch.Tensor, batch: int) -> torch.Tensor:
    """[batch * heads, sequence, width] -> [sequence, batch, heads, width]."""
    return x.view(batch, -1, *x.shape[1:]).permute(2, 0, 1, 3)

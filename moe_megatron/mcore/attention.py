"""Causal attention for the CPU, without the half of the scores that the mask throws away.

`CausalAttention` stands in for Megatron's `DotProductAttention` in the local layer spec. Queries go
in blocks, each against the keys up to its own end, and one autograd function keeps what the
backward pass needs. Where it does not apply (dropout, windows, softmax variants, short rows of an
inference cache) it is `DotProductAttention`. It has no parameters, so checkpoints do not see it.
"""

from itertools import pairwise
from typing import Any

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType

_BLOCK = {torch.bfloat16: 128, torch.float32: 64}
"""Queries of one block; the fastest for sequences of 256."""


class CausalAttention(DotProductAttention):
    """`DotProductAttention` with a faster path for plain causal attention.

    Latent attention (MLA) announces the widths of its keys and values, which Megatron's own class
    refuses; they are taken from the tensors.
    """

    def __init__(
        self,
        *args: Any,
        k_channels: int | None = None,
        v_channels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)

    def forward(  # Megatron's signature
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [sequence, batch, heads, width].
            key: [sequence, batch, groups, width].
            value: [sequence, batch, groups, value width].
            attention_mask: None for the causal mask alone.
            attn_mask_type: Kind of mask; None for that of the layer.
            attention_bias: Added to the scores; Megatron's own path refuses it.
            packed_seq_params: Packed sequences; Megatron's own path refuses them.

        Returns:
            [sequence, batch, heads * value width].
        """
        mask_type = self.attn_mask_type if attn_mask_type is None else attn_mask_type
        plain = (
            attention_mask is None
            and attention_bias is None
            and packed_seq_params is None
            and mask_type == AttnMaskType.causal
            and query.shape[0] == key.shape[0]
            and query.device.type == "cpu"
        )
        if not (plain and self._is_plain):
            return super().forward(  # type: ignore[no-any-return]
                query,
                key,
                value,
                attention_mask,
                attn_mask_type,
                attention_bias,
                packed_seq_params,
            )
        heads = query.shape[2] // key.shape[2]
        if heads > 1:
            key, value = (x.repeat_interleave(heads, dim=2) for x in (key, value))
        return _CausalAttention.apply(query, key, value, self.softmax_scale)  # type: ignore[no-any-return]

    @property
    def _is_plain(self) -> bool:
        softmax = self.scale_mask_softmax
        dropped = self.training and self.attention_dropout.p > 0
        return (
            not dropped
            and self.config.softmax_type == "vanilla"
            and softmax.window_size is None
            and softmax.scale is None
        )


class _CausalAttention(torch.autograd.Function):
    """Softmax attention of every query to the keys up to its own position."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attend: three [sequence, batch, heads, width] to [sequence, batch, heads * width].

        Values may have a width of their own, which is then that of the result.
        """
        length, batch = query.shape[:2]
        q, k, v = (_rows(x) for x in (query * scale, key, value))
        output = torch.empty_like(v)
        all_probs = []
        size = _BLOCK.get(q.dtype, 64)
        future = torch.full((size, size), -torch.inf, dtype=q.dtype).triu_(1)
        for start, end in _blocks(length, size):
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2))
            scores[:, :, start:] += future[: end - start, : end - start]
            probs = torch.softmax(scores, dim=-1)
            output[:, start:end] = torch.bmm(probs, v[:, :end])
            all_probs.append(probs)
        ctx.save_for_backward(q, k, v, *all_probs)
        ctx.scale, ctx.batch, ctx.size = scale, batch, size
        return _columns(output, batch).reshape(length, batch, -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of query, key and value."""
        q, k, v, *all_probs = ctx.saved_tensors
        length, width = v.shape[1:]
        grad = _rows(grads[0].view(length, ctx.batch, -1, width))
        d_q = torch.empty_like(q)
        d_k, d_v = (
            torch.zeros_like(k, dtype=torch.float32),
            torch.zeros_like(v, dtype=torch.float32),
        )
        for probs, (start, end) in zip(all_probs, _blocks(length, ctx.size), strict=True):
            part = grad[:, start:end]
            d_v[:, :end] += torch.bmm(probs.transpose(1, 2), part)
            d_probs = torch.bmm(part, v[:, :end].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)
            d_q[:, start:end] = torch.bmm(d_scores, k[:, :end])
            d_k[:, :end] += torch.bmm(d_scores.transpose(1, 2), q[:, start:end])
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

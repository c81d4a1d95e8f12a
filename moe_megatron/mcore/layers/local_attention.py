"""Attention of the local layer spec: Megatron's own, made faster on a CPU and usable for MLA.

It has no parameters, so it does not affect checkpoints.
"""

from typing import Any

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType

from moe_megatron.mcore.cpu import fast
from moe_megatron.mcore.cpu.fast.causal_attention import CausalAttention


class LocalAttention(DotProductAttention):
    """`DotProductAttention` with a faster path for plain causal attention.

    Packed sequences, which Megatron's class refuses, are attended to one by one.

    Everything else (dropout, windows, softmax variants, few queries against an inference cache) is
    left to Megatron. Latent attention (MLA) passes the widths of its keys and values, which
    Megatron's class refuses; they are ignored here, since the tensors have these widths anyway.
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
        """softmax(scale * Q K^T + mask) V.

        Args:
            query: [sequence, batch, heads, width]; of packed sequences [tokens, heads, width].
            key: [sequence, batch, query groups, width].
            value: [sequence, batch, query groups, value width].
            attention_mask: None for the causal mask alone.
            attn_mask_type: Kind of mask; None for the layer's own.
            attention_bias: Added to the scores; not supported by Megatron's class.
            packed_seq_params: Where each of the packed sequences begins; Megatron's class supports
                none.

        Returns:
            [sequence, batch, heads * value width]; of packed sequences [tokens, ...].
        """
        mask_type = self.attn_mask_type if attn_mask_type is None else attn_mask_type
        if packed_seq_params is not None and query.dim() == 3:
            return self._sample_by_sample(query, key, value, mask_type, packed_seq_params)
        plain = (
            attention_mask is None
            and attention_bias is None
            and packed_seq_params is None
            and mask_type == AttnMaskType.causal
            and query.shape[0] == key.shape[0]
            and self.is_plain(query)
        )
        if not plain:
            return super().forward(  # type: ignore[no-any-return]
                query,
                key,
                value,
                attention_mask,
                attn_mask_type,
                attention_bias,
                packed_seq_params,
            )
        return self.causal(query, key, value)

    def _sample_by_sample(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask_type: AttnMaskType,
        packed: Any,
    ) -> torch.Tensor:
        """Attention within each of the sequences that are packed into one."""
        sizes = torch.diff(packed.cu_seqlens_q).tolist()
        split = [torch.split(x.unsqueeze(1), sizes) for x in (query, key, value)]
        parts = zip(*split, strict=True)
        outputs = [self.forward(q, k, v, None, attn_mask_type=mask_type) for q, k, v in parts]
        return torch.cat(outputs).squeeze(1)

    def is_plain(self, query: torch.Tensor) -> bool:
        """Whether `causal` computes all that this layer does but for masks."""
        softmax = self.scale_mask_softmax
        dropped = self.training and self.attention_dropout.p > 0
        return (
            not dropped
            and self.config.softmax_type == "vanilla"
            and softmax.window_size is None
            and softmax.scale is None
            and query.device.type == "cpu"
            and fast.enabled("attention")
        )

    def causal(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Causal attention by our kernel; keys may begin before the queries, and end with them."""
        heads = query.shape[2] // key.shape[2]
        if heads > 1:
            key, value = (x.repeat_interleave(heads, dim=2) for x in (key, value))
        return CausalAttention.apply(query, key, value, self.softmax_scale)  # type: ignore[no-any-return]

"""Rotary positions in one pass, of packed sequences too.

Megatron rotates the sequences of a packed row one after the other, in about ten operations each:
of a row of eight sequences that is most of the operations of a layer. Here the angles of all
tokens are gathered first. The functions have the names and arguments of those in
`megatron.core.models.common.embeddings.rope_utils`, compute the same to the bit, and return None
where they are not meant for a case, which is left to the original.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from moe_megatron.mcore.cpu import fast
from moe_megatron.mcore.cpu.fast.falling_back import try_first


def fix_rope_utils(module: ModuleType) -> None:
    """Make both functions of the module try ours first."""
    try_first(module, _apply_rotary_pos_emb_bshd, _apply_rotary_pos_emb_thd)


class Rotation(torch.autograd.Function):
    """`apply(x, cos, sin, mixed, stays_mixed)`: y1 = x1 cos1 - x2 sin1, y2 = x2 cos2 + x1 sin2.

    x1 and x2 are the halves of the features that have an angle, or every other one of them where
    they are mixed; y1 and y2 likewise. Features beyond those stay as they are.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, mixed: bool, stays_mixed: bool
    ) -> Tensor:
        """Rotate [sequence, batch, heads, width] by angles [sequence, 1, 1, rotated width]."""
        ctx.save_for_backward(cos, sin)
        ctx.mixed, ctx.stays_mixed = mixed, stays_mixed
        rotated = cos.shape[-1]
        y = x.new_empty(x.shape)
        (x1, x2), (y1, y2) = _pair(x, rotated, mixed), _pair(y, rotated, stays_mixed)
        (cos1, cos2), (sin1, sin2) = (_pair(it, rotated, stays_mixed) for it in (cos, sin))
        torch.mul(x1, cos1, out=y1).sub_(x2 * sin1)
        torch.mul(x2, cos2, out=y2).add_(x1 * sin2)
        y[..., rotated:] = x[..., rotated:]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """d_x1 = d_y1 cos1 + d_y2 sin2, d_x2 = d_y2 cos2 - d_y1 sin1."""
        cos, sin = ctx.saved_tensors
        d_y, rotated = grads[0], cos.shape[-1]
        d_x = d_y.new_empty(d_y.shape)
        d_x1, d_x2 = _pair(d_x, rotated, ctx.mixed)
        d_y1, d_y2 = _pair(d_y, rotated, ctx.stays_mixed)
        (cos1, cos2), (sin1, sin2) = (_pair(it, rotated, ctx.stays_mixed) for it in (cos, sin))
        torch.mul(d_y1, cos1, out=d_x1).add_(d_y2 * sin2)
        torch.mul(d_y2, cos2, out=d_x2).sub_(d_y1 * sin1)
        d_x[..., rotated:] = d_y[..., rotated:]
        return d_x, None, None, None, None


def _apply_rotary_pos_emb_bshd(
    t: Tensor,
    freqs: Tensor,
    rotary_interleaved: bool = False,
    mla_rotary_interleaved: bool = False,
    mscale: float = 1.0,
    multi_latent_attention: bool | None = None,
) -> Tensor | None:
    """Rotate [sequence, batch, heads, width] by angles [sequence, 1, 1, rotated width]."""
    if not _rotates(t, freqs, rotary_interleaved, mla_rotary_interleaved, multi_latent_attention):
        return None
    cos, sin = _cos_sin(freqs, mscale, t.dtype)
    return _rotate(t, cos, sin, rotary_interleaved, mla_rotary_interleaved)


def _apply_rotary_pos_emb_thd(
    t: Tensor,
    cu_seqlens: Tensor,
    freqs: Tensor,
    rotary_interleaved: bool = False,
    mla_rotary_interleaved: bool = False,
    mscale: float = 1.0,
    cp_group: Any = None,
    multi_latent_attention: bool | None = None,
) -> Tensor | None:
    """Rotate [tokens, heads, width], sequences one after another, each from the first angle on."""
    usual = _rotates(t, freqs, rotary_interleaved, mla_rotary_interleaved, multi_latent_attention)
    if not usual or cp_group is None or cp_group.size() > 1 or len(freqs) == cu_seqlens[-1]:
        return None  # as many angles as tokens are one for each
    cos, sin = _cos_sin(freqs, mscale, t.dtype)
    positions = positions_of(cu_seqlens)
    cos, sin = cos.index_select(0, positions), sin.index_select(0, positions)
    rotated = _rotate(t.unsqueeze(1), cos, sin, rotary_interleaved, mla_rotary_interleaved)
    return rotated.squeeze(1)


def positions_of(bounds: Tensor) -> Tensor:
    """The place of each token in its sequence, [tokens], from where sequences begin and end."""
    sizes = torch.diff(bounds)
    begins = torch.repeat_interleave(bounds[:-1], sizes)
    return torch.arange(len(begins), device=bounds.device) - begins


def _rotates(
    t: Tensor, freqs: Tensor, stays_mixed: bool, mixed: bool, deprecated: bool | None
) -> bool:
    usual = deprecated is None and not (mixed and stays_mixed) and not freqs.requires_grad
    return usual and t.device.type == "cpu" and fast.enabled("rotary")


def _rotate(t: Tensor, cos: Tensor, sin: Tensor, stays_mixed: bool, mixed: bool) -> Tensor:
    rotated: Tensor = Rotation.apply(t, cos, sin, mixed or stays_mixed, stays_mixed)
    return rotated


def _cos_sin(freqs: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (torch.cos(freqs) * scale).to(dtype), (torch.sin(freqs) * scale).to(dtype)


def _pair(x: Tensor, rotated: int, mixed: bool) -> tuple[Tensor, Tensor]:
    """Views of the features that rotate into each other."""
    if mixed:
        return x[..., 0:rotated:2], x[..., 1:rotated:2]
    return x[..., : rotated // 2], x[..., rotated // 2 : rotated]

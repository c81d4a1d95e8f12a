"""A micro-batch of rows that hold several samples each, as Megatron's packed sequences.

Megatron wants all samples one after another in a single row, and where each begins
(`PackedSeqParams`): attention stays within a sample, positions begin anew with each. With
Transformer Engine its kernels do that, without it `layers/local_attention.py`.

Padding at the ends of rows is left out, since nothing is learned from it. What has to stay of it is
a sample of its own, which is in no loss and not counted by any router.
"""

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import get_attr_wrapped_model, get_model_config
from megatron.training import get_args
from torch import Tensor

PADDING = "padding"
"""The key that batches of instruction data have, and others have not."""

_MULTIPLE = 32
"""Of the number of tokens that a tensor parallel rank gets: FP8 wants 16, and on a CPU oneDNN has a
kernel for each shape in bf16, of which there shall be few."""


def flattened(batch: Mapping[str, Tensor], model: torch.nn.Module) -> dict[str, Any]:
    """What the model takes of a micro-batch, by Megatron's names.

    Args:
        batch: Tensors [batch, sequence].
        model: The part of the model that is to compute it.

    Returns:
        Tensors [1, tokens], and where samples begin.
    """
    kept_T = _kept(batch[PADDING])
    flat: dict[str, Any] = {
        name: tensor.reshape(-1)[kept_T][None] for name, tensor in batch.items()
    }
    bounds = sample_bounds(flat["position_ids"])
    longest = int((bounds[1:] - bounds[:-1]).max())
    padding = flat.pop(PADDING)
    has_embedding = get_attr_wrapped_model(model, "pre_process")
    if get_model_config(model).sequence_parallel and not has_embedding:
        # Megatron cuts it with the embedding alone.
        parts = padding.chunk(mpu.get_tensor_model_parallel_world_size(), dim=1)
        padding = parts[mpu.get_tensor_model_parallel_rank()].contiguous()
    flat["padding_mask"] = padding
    flat["packed_seq_params"] = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
    return flat


def _kept(padding: Tensor) -> Tensor | slice:
    """The places of [batch * sequence] that are computed.

    That is all of them where other processes expect that a micro-batch has the length of its rows.

    Args:
        padding: bool [batch, sequence].
    """
    if not get_args().variable_seq_lengths:
        return slice(None)
    return without_padding(padding, _MULTIPLE * mpu.get_tensor_model_parallel_world_size())


def without_padding(padding: Tensor, multiple: int) -> Tensor:
    """The places that are no padding, and the first that are, up to a multiple in all.

    Args:
        padding: bool [batch, sequence].
        multiple: What the number of places is one of, unless all of them are fewer.

    Returns:
        int64 [places], in order, of [batch * sequence].
    """
    padding_T = padding.view(-1)
    missing = -int((~padding_T).sum()) % multiple
    return torch.nonzero(~padding_T | (padding_T.cumsum(0) <= missing)).view(-1)


def sample_bounds(positions: Tensor) -> Tensor:
    """Where samples begin, and where the last one ends: int32 [samples + 1].

    Args:
        positions: [1, T], 0 where a sample begins.
    """
    starts = torch.nonzero(positions.view(-1) == 0).view(-1)
    end = torch.tensor([positions.numel()], device=positions.device)
    return torch.cat((starts, end)).to(torch.int32)


def set_packing(args: Any, *, packed: bool) -> None:
    """Tell Megatron that each micro-batch is one row, of a length of its own.

    With the all-gather dispatcher all rows have to be equally long.

    Args:
        args: Megatron's arguments.
        packed: Whether they are.
    """
    same = args.moe_token_dispatcher_type == "allgather" and args.micro_batch_size == 1
    args.variable_seq_lengths = packed and not same

"""A fingerprint of the weights of the whole model, the same under every layout.

    F = sum over all elements x of bits(x) * m(place of x)   mod 2^64

m makes a number from the name of a tensor and the place of the element in it, as checkpoints know
both. Each rank adds up what it is the main replica of, so no weight leaves its rank. It tells
models apart that are not alike by accident; it is no protection against somebody who wants it to
fail.
"""

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.utils import unwrap_model
from torch import Tensor

from moe_megatron.families.links import is_of_vocabulary
from moe_megatron.mcore.state.sharded import sharded_tensors

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by the bytes of an element."""
_ROWS = 2**22
"""About how many elements are added up at once."""


def weights_fingerprint(model: list[Any], vocab_size: int) -> str:
    """The fingerprint of a model; every rank must call it.

    Args:
        model: Megatron's model chunks, wrapped or not.
        vocab_size: Entries of the vocabulary; rows that pad it do not count.

    Returns:
        16 hexadecimal digits.
    """
    total = torch.zeros((), dtype=torch.int64, device=next(model[0].parameters()).device)
    with torch.no_grad():
        for chunk in unwrap_model(model):
            for tensor in sharded_tensors(chunk):
                if is_main_replica(tensor.replica_id) and tensor.data is not None:
                    total += _share(tensor, vocab_size)
    dist.all_reduce(total)
    return f"{int(total) % 2**64:016x}"


def _share(tensor: ShardedTensor, vocab_size: int) -> Tensor:
    """What the elements of one tensor of this rank add."""
    leading = tensor.prepend_axis_num
    shape = tensor.global_shape[leading:]
    offset = list(tensor.global_offset[leading:])
    local = tensor.data.detach()
    local = local.reshape(tensor.local_shape) if shape else local.reshape(1)
    if is_of_vocabulary(tensor.key):
        local = local[: max(0, vocab_size - offset[0])]
    name = f"{tensor.key} {tuple(tensor.global_offset[:leading])}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
    bits = local.contiguous().view(_BITS[local.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=local.device)
    rows = max(1, _ROWS // max(1, bits[:1].numel()))
    for first in range(0, len(bits), rows):
        part = bits[first : first + rows].long()
        place = torch.zeros((), dtype=torch.int64, device=local.device)
        for axis, size in enumerate(part.shape):
            at = offset[axis] if shape else 0
            at += first if axis == 0 else 0
            numbers = torch.arange(at, at + size, device=local.device)
            where = [1] * part.dim()
            where[axis] = size
            place = place * (shape[axis] if axis else 1) + numbers.view(where)
        total += (part * _mixed(place + seed)).sum()
    return total


def _mixed(number: Tensor) -> Tensor:
    """A number that looks drawn at random, and odd (splitmix64, with signed shifts)."""
    number = (number ^ (number >> 30)) * -4658895280553007687
    number = (number ^ (number >> 27)) * -7723592293110705685
    return (number ^ (number >> 31)) | 1

"""Whether two checkpoints hold the same tensors, weights and optimizer, to the bit."""

import hashlib
import os
from math import prod
from pathlib import Path

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.torch_dist import TorchDist

_Digests = dict[tuple[str, tuple[int, ...], tuple[int, ...]], str]


def different_tensors(ours: Path, theirs: Path) -> list[str]:
    """Names of the tensors that are not the same in two checkpoints of one layout.

    Args:
        ours: A checkpoint folder.
        theirs: Another, saved by as many processes.

    Raises:
        CheckpointError: One of them is damaged.
    """
    left, right = _digests(ours), _digests(theirs)
    differing = {key for key in {*left, *right} if left.get(key) != right.get(key)}
    return sorted({name for name, *_ in differing})


def _digests(folder: Path) -> _Digests:
    """A digest of each saved box, by tensor, offsets and sizes."""
    digests: _Digests = {}
    with TorchDist(folder) as saved:
        for tensor in saved.tensors.values():
            for chunk in tensor.chunks:
                nbytes = prod(chunk.sizes) * dtypes.item_size(tensor.dtype)
                path = saved.path / saved.files[chunk.record.file]
                with path.open("rb") as file:
                    content = os.pread(file.fileno(), nbytes, saved.data_offset(tensor, chunk))
                digest = hashlib.blake2b(content, digest_size=16).hexdigest()
                digests[tensor.key, chunk.offsets, chunk.sizes] = digest
    return digests

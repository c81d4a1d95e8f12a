"""Reads all tensors of a Megatron checkpoint, for tests that compare two."""

from pathlib import Path

import torch

from moe_megatron.checkpoint.formats.box_reader import BoxReader
from moe_megatron.checkpoint.formats.torch_dist import TorchDist


def whole_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor by its name, in whichever parts it was saved.

    Args:
        folder: Folder of one checkpoint.
    """
    with TorchDist(folder) as saved, BoxReader(saved) as reader:
        shapes = {key: tensor.shape for key, tensor in saved.tensors.items()}
        return {key: reader.read(key, [0] * len(it), it) for key, it in shapes.items()}

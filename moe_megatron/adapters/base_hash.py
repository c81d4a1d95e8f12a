"""What tells a base model from others: a hash of its matrices, the same in every format.

    hash = sha256 over all matrices, in the order of their places, of place, shape and numbers

Numbers are rounded to bf16 first, so that a base in float32 and what a run in bf16 makes of it are
one. Vectors, layers for multi-token prediction and padding of the vocabulary are left out: not
every format has them.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moe_megatron.checkpoint.edit.selection import without_prediction
from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.matrices import read_matrix, read_saved_matrix
from moe_megatron.config import Architecture
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of
from moe_megatron.families.links import Link
from moe_megatron.families.matrix_places import by_place
from moe_megatron.model import MoEModel
from moe_megatron.model.links import links_of
from moe_megatron.model.matrices import gathered

if TYPE_CHECKING:
    from torch import Tensor

_ALGORITHM = "sha256"
_NO_PLACE = "hugging_face."
_EMBEDDING = "embedding.word_embeddings.weight"


def hash_of_model(model: MoEModel) -> str:
    """The hash of a model in memory, with all of its experts."""
    tensors = model.state_dict()
    return _hash(links_of(model.architecture), lambda link: gathered(link, tensors))


def hash_of_folder(path: Path) -> str:
    """The hash of a Hugging Face folder or Megatron checkpoint; adapters in it are not counted.

    One matrix is in memory at a time.

    Args:
        path: The folder; of a Megatron checkpoint, that of an iteration or the one around it.

    Raises:
        CheckpointError: It is neither, or is damaged.
        MappingError: No family describes it.
    """
    if not is_megatron_checkpoint(path):
        folder = HfFolder(path)
        family = family_of(folder.config)
        geometry = family.geometry(folder.config, folder.tensors)
        links = without_prediction(family.links_of(geometry, folder.tensors), geometry)
        return _hash(links, lambda link: read_matrix(link, folder))
    with TorchDist(path) as saved:
        links = links_of(architecture_of(saved))

        def matrix(link: Link) -> "Tensor":
            found = read_saved_matrix(link, saved)
            if found is None:
                raise CheckpointError(
                    f"{saved.path} lacks {link.key}, which the model of its config.yaml needs; the "
                    "checkpoint is incomplete."
                )
            return found

        return _hash(links, matrix)


def architecture_of(saved: TorchDist) -> Architecture:
    """The model of a Megatron checkpoint, without layers for multi-token prediction.

    Raises:
        CheckpointError: It has no configuration.
        ConfigError: That is invalid.
    """
    whole = description.run_of(saved.path).architecture
    vocabulary = whole.vocab_size or saved.tensors[_EMBEDDING].shape[0]
    model = replace(whole.model, num_prediction_layers=0)
    return replace(whole, model=model, vocab_size=vocabulary)


def _hash(links: Iterable[Link], matrix: Callable[[Link], "Tensor"]) -> str:
    running = hashlib.new(_ALGORITHM)
    for place, link in sorted(by_place(links).items()):
        if place.startswith(_NO_PLACE):
            continue
        running.update(f"{place} {list(link.shape)}\n".encode())
        numbers = matrix(link).detach().to("cpu", torch.bfloat16).contiguous()
        running.update(memoryview(numbers.view(torch.uint8).numpy()).cast("B"))
    return f"{_ALGORITHM}:{running.hexdigest()}"

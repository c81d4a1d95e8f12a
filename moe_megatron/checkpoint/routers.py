"""The digests of a model's routers from its files; see `telemetry/values/router_digest.py`.

Only the matrices of routers are read. The tables of families say which they are.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.matrices import read_matrix, read_saved_matrix
from moe_megatron.config import Architecture
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of
from moe_megatron.families.links import Link, saved_names
from moe_megatron.telemetry.values.router_digest import router_digests

if TYPE_CHECKING:
    from torch import Tensor

ROUTER = "mlp.router.weight"
"""The end of the key of a router's matrix."""
_OF_DECODER = f"decoder.layers.{{layer}}.{ROUTER}"


def routers_of(path: Path) -> dict[int, str]:
    """The digest of each layer's router, by its number from 1, of either kind of folder.

    Raises:
        CheckpointError: It is incomplete or damaged.
        MappingError: There is no table for its family.
    """
    if not is_megatron_checkpoint(path):
        return routers_of_folder(HfFolder(path, quantized=True))
    with TorchDist(path) as saved:
        model = description.run_of(saved.path).architecture
        layers = model.routed_layers
        return router_digests((n, saved_router(saved, n, model)) for n in layers)


def routers_of_folder(folder: HfFolder) -> dict[int, str]:
    """Of a Hugging Face folder, the routers of its decoder; without those of few bits."""
    family = family_of(folder.config)
    geometry = family.geometry(folder.config, folder.tensors)
    there = [
        link
        for link in family.links_of(geometry, folder.tensors)
        if link.key == _OF_DECODER and all(block.name in folder.tensors for block in link.blocks)
    ]
    return router_digests((int(it.layer or 0) + 1, read_matrix(it, folder)) for it in there)


def saved_router(saved: TorchDist, layer: int, model: Architecture) -> "Tensor":
    """What a Megatron checkpoint has as the weight of a router.

    Args:
        saved: The checkpoint.
        layer: Its layer, from 1.
        model: The model of the checkpoint.

    Raises:
        CheckpointError: There is none, or its records are damaged.
    """
    after = layer - 1 - model.model.num_layers
    before = f"mtp.layers.{after}.transformer_layer." if after >= 0 else "decoder.layers.{layer}."
    number = None if after >= 0 else layer - 1
    link = Link(key=before + ROUTER, layer=number, shape=(), blocks=())
    for name, index in saved_names(link.key, link):
        if name in saved.tensors:
            rows = replace(link, shape=saved.tensors[name].shape[len(index) :])
            found = read_saved_matrix(rows, saved)
            assert found is not None, "its key is there"
            return found
    raise CheckpointError(f"{saved.path} has no router of layer {layer}.")

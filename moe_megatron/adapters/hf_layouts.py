"""The layouts that the matrices of a model have in programs of Hugging Face.

    transformers 5    all experts in one parameter; the modules that PEFT adapts
    transformers 4    each expert's matrices by themselves

It does not know adapters.
"""

from pathlib import Path

from moe_megatron.adapters.pieces import Pieces
from moe_megatron.checkpoint.edit.selection import without_prediction
from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.config import Architecture, DataConfig, RunConfig
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.families import Family, Geometry, family_of, family_of_run


class HfLayouts:
    """A model of a family as its tensors are laid out."""

    def __init__(self, family: Family, geometry: Geometry) -> None:
        self.family = family
        fused, single = (
            Pieces(without_prediction(family.links(geometry, fused=fused), geometry))
            for fused in (True, False)
        )
        self.fused = fused
        """In transformers 5."""
        self.both = (fused, single)
        """There, and in transformers 4."""


def layouts_of_folder(path: Path) -> HfLayouts:
    """The layouts of a Hugging Face folder, or of what a Megatron checkpoint would be exported as.

    Raises:
        CheckpointError: It is neither, or is damaged.
        MappingError: No family can express the model.
    """
    if not is_megatron_checkpoint(path):
        folder = HfFolder(path)
        family = family_of(folder.config)
        return HfLayouts(family, family.geometry(folder.config, folder.tensors))
    with TorchDist(path) as saved:
        run = description.run_of(saved.path)
        family = description.family_of_folder(saved.path)
        config = family.hf_config(run, description.base_config(saved.path), saved.tensors)
        return HfLayouts(family, family.geometry(config, saved.tensors))


def layouts_of_model(architecture: Architecture) -> HfLayouts:
    """The layouts of what a model would be exported as.

    Raises:
        MappingError: No family can express the model.
    """
    data = DataConfig(vocab_size=architecture.vocab_size)
    run = RunConfig(model=architecture.model, moe=architecture.moe, data=data)
    family = family_of_run(run)
    return HfLayouts(family, family.geometry(family.hf_config(run)))

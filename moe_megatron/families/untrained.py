"""Refuses to train checkpoints of models that are converted, but that Megatron does not compute.

It reads the configuration that an import puts beside the tensors, and knows no family.
"""

from pathlib import Path

from moe_megatron.config.checkpoint_files import HF_CONFIG
from moe_megatron.errors import CheckpointError
from moe_megatron.families.registry import FAMILIES
from moe_megatron.reading import read_json


def check_trains(folder: Path) -> None:
    """Check that the model of a checkpoint can be trained.

    Args:
        folder: The folder of the tensors.

    Raises:
        CheckpointError: It is of a family that does not train here; the message says why.
    """
    try:
        config = read_json(folder / HF_CONFIG)
    except (OSError, ValueError):
        return  # it was not imported, or an export will say what is wrong with the file
    name = config.get("model_type") if isinstance(config, dict) else None
    family = FAMILIES.get(str(name))
    if family is not None and family.untrained:
        raise CheckpointError(
            f"{folder} holds a {family.name} model, which does not train here: {family.untrained} "
            "Export it (moe-megatron convert) and train it with transformers."
        )
